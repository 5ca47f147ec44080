"""compare_spaces against a plain numpy computation over dicts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import (
    CachedEncoder,
    CacheError,
    ConfigError,
    SpaceComparison,
    VllmEncoderWrapper,
)
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows, Space
from embcache.tools.compare import TextCosine
from embcache.tools.compare import compare_spaces as compare
from embcache.tools.find import find_space
from tests.conftest import encode
from tests.spaces import add_blindly, folder

DIM = 32  # wide enough for Lance to store the vectors' bytes as they are


def random_vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def space_of(cache: Path, dtype: str = "float32", **kwargs: Any) -> Space:
    identity = Identity("organization/name", "0" * 40, dtype)
    return Database(cache, writable=True).space(identity, identity.model, "vllm 1.0", **kwargs)


def append(
    space: Space, texts: Sequence[str], vectors: np.ndarray, prompt: str | None = "p: "
) -> Path:
    """Commit rows, duplicates too; the path of their space."""
    keys = text_keys(space.identity.to_bytes(), prompt or "", texts)
    rows = Rows(keys, vectors, {"text": list(texts), "prompt": prompt})
    if (space.refresh().find(keys) >= 0).any():
        add_blindly(space, rows)
    else:
        space.add(rows)
    return folder(space)


def compare_spaces(a: Path | Space, b: Path | Space, **kwargs: Any) -> SpaceComparison:
    """`compare_spaces`, also of folders."""
    spaces = [one if isinstance(one, Space) else find_space(one) for one in (a, b)]
    return compare(*spaces, **kwargs)


def names(count: int, first: int = 0) -> list[str]:
    return [f"text {i}" for i in range(first, first + count)]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In float64, one row after the other."""
    pairs = zip(left.astype(np.float64), right.astype(np.float64), strict=True)
    return np.array([x @ y / (math.sqrt(x @ x) * math.sqrt(y @ y)) for x, y in pairs])


def flip_byte_of_vector(path: Path, vector: np.ndarray) -> None:
    raw = vector.tobytes()
    (file,) = (f for f in path.glob("data/*.lance") if raw in f.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(raw) + 5] ^= 0xFF
    file.write_bytes(content)


# What it computes.


def test_counts_and_cosines_as_numpy_has_them(tmp_path: Path) -> None:
    """500 texts in a and 400 in b, 300 of them shared, in another order."""
    left = random_vectors(500)
    right = left[200:] + 0.3 * random_vectors(300, seed=1)
    a = append(space_of(tmp_path), names(500), left)
    b = append(
        space_of(tmp_path, "float16"),
        [*reversed(names(300, 200)), *names(100, 1000)],
        np.concatenate((right[::-1], random_vectors(100, seed=2))),
    )
    found = compare_spaces(a, b)
    expected = cosines(left[200:], right)
    assert (found.shared, found.only_a, found.only_b, found.damaged) == (300, 200, 100, 0)
    assert (found.a, found.b) == (a.stem, b.stem)
    assert found.cosine_mean == pytest.approx(expected.mean(), abs=1e-14)
    assert found.cosine_min == pytest.approx(expected.min(), abs=1e-14)
    assert found.cosine_p1 == pytest.approx(np.percentile(expected, 1), abs=1e-14)
    order = np.argsort(expected)[:10]
    assert [moved.text for moved in found.moved] == [f"text {200 + i}" for i in order]
    assert [moved.cosine for moved in found.moved] == pytest.approx(expected[order], abs=1e-14)
    assert {moved.prompt for moved in found.moved} == {"p: "}
    assert "300 shared texts, 200 only in a, 100 only in b" in str(found)
    assert f"minimum {expected.min():.6f}" in str(found) and "'p: text" in str(found)


def test_the_other_way_round(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), names(40), random_vectors(40))
    b = append(space_of(tmp_path, "float16"), names(40, 10), random_vectors(40, seed=1))
    one, other = compare_spaces(a, b), compare_spaces(b, a)
    assert (one.shared, one.only_a, one.only_b) == (other.shared, other.only_b, other.only_a)
    assert (one.cosine_mean, one.cosine_min) == pytest.approx((other.cosine_mean, other.cosine_min))
    assert one.moved == other.moved


@pytest.mark.parametrize(("most_moved", "named"), [(0, 0), (3, 3), (100, 5)])
def test_how_many_are_named(most_moved: int, named: int, tmp_path: Path) -> None:
    a = append(space_of(tmp_path), names(5), random_vectors(5))
    b = append(space_of(tmp_path, "float16"), names(5), random_vectors(5, seed=1))
    moved = compare_spaces(a, b, most_moved=most_moved).moved
    assert len(moved) == named
    assert moved == sorted(moved, key=lambda m: m.cosine)


def test_a_space_against_itself(tmp_path: Path) -> None:
    path = append(space_of(tmp_path), names(50), random_vectors(50))
    found = compare_spaces(path, path)
    assert (found.shared, found.only_a, found.only_b) == (50, 0, 0)
    assert found.cosine_mean == found.cosine_min == found.cosine_p1 == 1.0


def test_special_vectors(tmp_path: Path) -> None:
    """Zero, opposite, right-angled, and so long that a float32 norm overflows."""
    one = np.eye(DIM, dtype=np.float32)[0]
    huge, tiny = one * np.finfo(np.float32).max, one * np.float32(1e-45)
    other = np.eye(DIM, dtype=np.float32)[1]
    pairs = {
        "both zero": (0 * one, 0 * one, 1.0),
        "one zero": (0 * one, one, 0.0),
        "other zero": (one, 0 * one, 0.0),
        "opposite": (one, -2 * one, -1.0),
        "right angle": (one, other, 0.0),
        "huge": (huge, huge / 2 + 0 * other, 1.0),
        "tiny": (tiny, one, 1.0),
    }
    left, right, expected = zip(*pairs.values(), strict=True)
    a = append(space_of(tmp_path), list(pairs), np.stack(left))
    b = append(space_of(tmp_path, "float16"), list(pairs), np.stack(right))
    found = compare_spaces(a, b)
    assert {m.text: m.cosine for m in found.moved} == dict(zip(pairs, expected, strict=True))


def test_the_same_words_under_another_prompt_are_another_text(tmp_path: Path) -> None:
    """Nor is an unknown prompt the same as none, or the prompt a part of the text."""
    a, b = space_of(tmp_path), space_of(tmp_path, "float16")
    for seed, prompt in enumerate(["query: ", "", None]):
        path_a = append(a, names(5), random_vectors(5, seed), prompt)
    path_b = append(b, names(5), random_vectors(5), "query: ")
    append(b, names(5), random_vectors(5, seed=7), "passage: ")
    append(b, ["query: text 0"], random_vectors(1, seed=8), "")
    found = compare_spaces(path_a, path_b)
    assert (found.shared, found.only_a, found.only_b) == (5, 10, 6)
    assert found.cosine_min == 1.0 and {m.prompt for m in found.moved} == {"query: "}


def test_unknown_prompts_match_each_other(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), ["x"], random_vectors(1), None)
    b = append(space_of(tmp_path, "float16"), ["x"], random_vectors(1), None)
    found = compare_spaces(a, b)
    assert found.moved == [TextCosine("x", None, 1.0)] and "none has moved" in str(found)
    turned = append(space_of(tmp_path, "bfloat16"), ["x"], -random_vectors(1), None)
    assert "-1.000000  'x'" in str(compare_spaces(a, turned))


def test_odd_texts_are_matched(tmp_path: Path) -> None:
    texts = ["", " ", "\0", "\0unknown", "emoji 😀", "line\nbreak", "x" * 100_000]
    a = append(space_of(tmp_path), texts, random_vectors(7))
    b = append(space_of(tmp_path, "float16"), texts[::-1], random_vectors(7)[::-1])
    found = compare_spaces(a, b)
    assert found.shared == 7 and found.cosine_min == 1.0
    assert {moved.text for moved in found.moved} == set(texts)
    assert max(map(len, str(found).splitlines())) < 120


# What is in a space more than once, not at all, or no more.


def test_a_text_that_two_processes_appended_counts_once(tmp_path: Path) -> None:
    """At the same time, so neither saw the other's row."""
    a, b = space_of(tmp_path), space_of(tmp_path, "float16")
    path = append(a, names(20), random_vectors(20))
    append(a, names(10, 15), random_vectors(10, seed=1))
    append(a, names(5), random_vectors(5, seed=2))
    expected = np.concatenate((random_vectors(20), random_vectors(10, seed=1)[5:]))
    other = append(b, names(25), expected)
    append(b, names(25), random_vectors(25, seed=3))
    for found in (compare_spaces(path, other), compare_spaces(other, path)):
        assert (found.shared, found.only_a, found.only_b) == (25, 0, 0)
        assert found.cosine_min == 1.0, "not the row that was committed first"


def test_first_committed_counts_after_compaction_too(tmp_path: Path) -> None:
    """Compaction may move a fragment behind a younger one that holds the same text."""
    space = space_of(tmp_path)
    path = append(space, ["x", "y", "z"], random_vectors(3))
    append(space, ["x", "w"], random_vectors(2, seed=1))
    lancedb.connect(str(tmp_path)).open_table(path.stem).delete("text = 'z'")
    lance.dataset(str(path)).optimize.compact_files(target_rows_per_fragment=2)
    texts = lance.dataset(str(path)).to_table()["text"].to_pylist()
    assert texts == ["x", "w", "x", "y"], "the case was not made"
    other = append(space_of(tmp_path, "float16"), ["x", "y"], random_vectors(2))
    assert compare_spaces(path, other).cosine_min == 1.0
    assert compare_spaces(other, path).cosine_min == 1.0


def test_deleted_rows_and_several_fragments(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    for first in (0, 100, 200):
        path = append(space, names(100, first), random_vectors(300)[first : first + 100])
    lancedb.connect(str(tmp_path)).open_table(path.stem).delete("text LIKE '%7'")
    left = random_vectors(300) + 0.1 * random_vectors(300, seed=1)
    found = compare_spaces(append(space_of(tmp_path, "float16"), names(300), left), path)
    rest = [i for i in range(300) if i % 10 != 7]
    expected = cosines(left[rest], random_vectors(300)[rest])
    assert (found.shared, found.only_a, found.only_b) == (270, 30, 0)
    assert found.cosine_min == pytest.approx(expected.min(), abs=1e-14)
    assert found.moved[0].text == f"text {rest[int(np.argmin(expected))]}"


def test_nothing_shared(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), names(5), random_vectors(5))
    b = append(space_of(tmp_path, "float16"), names(5, 5), random_vectors(5))
    found = compare_spaces(a, b)
    assert (found.shared, found.only_a, found.only_b, found.moved) == (0, 5, 5, [])
    assert all(map(math.isnan, (found.cosine_mean, found.cosine_min, found.cosine_p1)))
    assert "0 shared texts, 5 only in a, 5 only in b" in str(found) and "nan" not in str(found)


def test_a_space_without_rows(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), names(5), random_vectors(5))
    b = append(space_of(tmp_path, "float16"), names(5), random_vectors(5))
    lancedb.connect(str(tmp_path)).open_table(b.stem).delete("true")
    assert (compare_spaces(a, b).shared, compare_spaces(a, b).only_a) == (0, 5)
    assert compare_spaces(b, b).shared == 0


@pytest.mark.parametrize("damage_in", ["a", "b", "both"])
def test_damaged_rows_are_left_out(
    damage_in: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left, right = random_vectors(50), random_vectors(50) + 0.1 * random_vectors(50, seed=1)
    a = append(space_of(tmp_path), names(50), left)
    b = append(space_of(tmp_path, "float16"), names(60), np.concatenate((right, right[:10])))
    expected = cosines(left, right)
    worst = int(np.argmin(expected))  # it would be seen in every number
    if damage_in in ("a", "both"):
        flip_byte_of_vector(a, left[worst])
    if damage_in in ("b", "both"):
        flip_byte_of_vector(b, right[worst])
    found = compare_spaces(a, b)
    rest = np.delete(expected, worst)
    assert (found.shared, found.damaged, found.only_a, found.only_b) == (49, 1, 0, 10)
    assert found.cosine_min == pytest.approx(rest.min(), abs=1e-14)
    assert found.cosine_mean == pytest.approx(rest.mean(), abs=1e-14)
    assert f"text {worst}" not in [moved.text for moved in found.moved]
    assert "1 shared texts are left out" in caplog.text and "1 left out" in str(found)


# What cannot be compared.


def test_another_dimension(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), ["x"], random_vectors(1))
    b = append(space_of(tmp_path, "float16"), ["x"], random_vectors(1, dim=8))
    with pytest.raises(
        ConfigError, match=r"float32--\w+ has .* 32 .*float16--\w+ of 8: there is no"
    ):
        compare_spaces(a, b)


def test_a_damaged_space_beside_does_not_matter(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), ["x"], random_vectors(1))
    b = append(space_of(tmp_path, "float16"), ["x"], random_vectors(1))
    beside = append(space_of(tmp_path, "bfloat16"), ["x"], random_vectors(1))
    for manifest in (beside / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    assert compare_spaces(a, b).shared == 1


def test_a_space_without_texts(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), ["x"], random_vectors(1))
    b = append(space_of(tmp_path, "float16", store_text=False), ["x"], random_vectors(1))
    for paths in ((a, b), (b, a)):
        with pytest.raises(CacheError, match=r"float16.*was begun with store_text=False"):
            compare_spaces(*paths)


def test_rows_without_texts_in_a_space_that_has_them(tmp_path: Path) -> None:
    """A later process with store_text=False, or images: rows that nothing can be matched with."""
    a = append(space_of(tmp_path), names(5), random_vectors(5))
    append(space_of(tmp_path, store_text=False), names(5, 5), random_vectors(5, seed=1))
    append(space_of(tmp_path), names(5, 10), random_vectors(5, seed=2))
    b = append(space_of(tmp_path, "float16"), names(15), random_vectors(15))
    found = compare_spaces(a, b)
    assert (found.shared, found.only_a, found.only_b) == (10, 0, 5)
    everything = np.concatenate((random_vectors(5), random_vectors(5, seed=2)))
    expected = cosines(everything, np.delete(random_vectors(15), range(5, 10), 0))
    assert found.cosine_mean == pytest.approx(expected.mean(), abs=1e-14)


def test_scores_have_no_angle(tmp_path: Path) -> None:
    a = append(space_of(tmp_path), ["x"], random_vectors(1))
    scores = space_of(tmp_path, "float16", layout=SCORES)
    keys = pair_keys(scores.metadata.identity.to_bytes(), ("", ""), ["q"], ["d"])
    scores.add(Rows(keys, np.ones((1, 1), np.float32), {"query": ["q"], "document": ["d"]}))
    for paths in ((a, folder(scores)), (folder(scores), a)):
        with pytest.raises(ConfigError, match=r"float16.* holds scores, not vectors"):
            compare_spaces(*paths)


# Many, at random, and with real models.


def test_20_000_rows_take_seconds(tmp_path: Path) -> None:
    left = random_vectors(20_000)
    right = left + 0.1 * random_vectors(20_000, seed=1)
    a = append(space_of(tmp_path), names(20_000), left)
    b = append(space_of(tmp_path, "float16"), names(20_000)[::-1], right[::-1])
    started = time.perf_counter()
    found = compare_spaces(a, b)
    seconds = time.perf_counter() - started
    expected = (left.astype(np.float64) * right).sum(axis=1)
    expected /= np.linalg.norm(left.astype(np.float64), axis=1) * np.linalg.norm(
        right.astype(np.float64), axis=1
    )
    assert found.shared == 20_000
    assert found.cosine_p1 == pytest.approx(np.percentile(expected, 1), abs=1e-12)
    order = np.argsort(expected)[:10]
    assert [moved.text for moved in found.moved] == [f"text {i}" for i in order]
    assert seconds < 5


rows = st.dictionaries(
    st.tuples(st.sampled_from(["", "p: ", None]), st.integers(0, 9).map(str)),
    st.integers(0, 2**32 - 1),  # seed of the vector
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(a=rows, b=rows, more=rows)
def test_any_two_spaces(a: dict[Any, int], b: dict[Any, int], more: dict[Any, int]) -> None:
    """`more` is appended to the first by a process that did not see its rows."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        one, two = space_of(Path(folder)), space_of(Path(folder), "float16")
        for space, content in ((one, a), (two, b), (one, more)):
            for (prompt, text), seed in content.items():
                append(space, [text], random_vectors(1, seed, dim=4), prompt)
        found = compare_spaces(one, two, most_moved=100)
    check(found, more | a, b)


def check(found: SpaceComparison, a: dict[Any, int], b: dict[Any, int]) -> None:
    shared = a.keys() & b.keys()
    assert (found.shared, found.damaged) == (len(shared), 0)
    assert (found.only_a, found.only_b) == (len(a.keys() - shared), len(b.keys() - shared))
    moved = {(m.prompt, m.text): m.cosine for m in found.moved}
    assert moved.keys() == shared and len(found.moved) == len(shared)
    for row in shared:
        left, right = random_vectors(1, a[row], 4), random_vectors(1, b[row], 4)
        assert moved[row] == pytest.approx(cosines(left, right)[0], abs=1e-12)
    if shared:
        values = list(moved.values())
        assert values == sorted(values) and found.cosine_min == values[0]
        assert found.cosine_mean == pytest.approx(np.mean(values), abs=1e-12)
        assert found.cosine_p1 == pytest.approx(np.percentile(values, 1), abs=1e-12)


@pytest.mark.engine
def test_vllm_and_sentence_transformers_agree(
    real_encoder: Callable[..., VllmEncoderWrapper], model_path: str, tmp_path: Path
) -> None:
    from mteb.models import SentenceTransformerEncoderWrapper

    texts = ["", "ALL CAPS and Ünïcödé", *(f"sentence number {i} " * (1 + i) for i in range(28))]
    encode(real_encoder(cache_path=tmp_path / "vllm"), texts)
    model = SentenceTransformerEncoderWrapper(model_path, device="cpu")
    encode(CachedEncoder(model, tmp_path / "st"), texts)  # type: ignore[arg-type]
    found = compare_spaces(tmp_path / "vllm", tmp_path / "st")
    assert (found.shared, found.only_a, found.only_b) == (30, 0, 0)
    assert found.cosine_min > 0.9999
