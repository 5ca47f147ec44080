from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import lancedb
import numpy as np
import pytest

from embcache import CacheError, ConfigError, InputError, MissingTextsError
from embcache.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows, Space, SpaceInfo
from embcache.store.describe import TokenBin, ValueCount, describe, remove_space
from embcache.store.lookup import find_text, nearest, search_words
from tests.store.conftest import IDENTITY, make_rows

DIM = 8


def info(space: Space) -> SpaceInfo:
    return SpaceInfo(space.path, space.metadata)


def vectors_of(texts: list[str], vectors: np.ndarray, prompt: str | None = "p: ") -> Rows:
    """Rows with vectors of one's own."""
    keys = text_keys(IDENTITY.to_bytes(), prompt or "unknown", texts)
    return Rows(keys, vectors.astype(np.float32), {"text": texts, "prompt": prompt})


@pytest.fixture
def scores(tmp_path: Path) -> SpaceInfo:
    database = Database(tmp_path / "cache", writable=True)
    space = database.space(IDENTITY, IDENTITY.model, "vllm 1.0", layout=SCORES)
    keys = pair_keys(IDENTITY.to_bytes(), ("q: ", ""), ["a", "a"], ["b", "c"])
    columns = {
        "query": "a",
        "document": ["b", "c"],
        "query_prefix": "q: ",
        "document_prefix": "",
        "task": "Task",
    }
    space.append(Rows(keys, np.array([[0.5], [0.25]], np.float32), columns))
    return info(space)


def test_describe_counts_everything(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows([f"text {i}" for i in range(20)]))
    space.append(vectors_of(["other"], np.ones((1, DIM)), prompt="q: "))
    found = describe(info(space))
    assert (found.rows, found.fragments, found.dim, found.value) == (21, 2, DIM, "vector")
    assert found.format_version == 1 and found.info.metadata.engine_version == "vllm 1.0"
    assert found.columns["key"] == "fixed_size_binary[16]" and found.columns["text"] == "string"
    assert found.counts["prompt"] == [ValueCount("p: ", 20), ValueCount("q: ", 1)]
    assert found.counts["task"] == [ValueCount("Task", 20), ValueCount(None, 1)]
    assert found.tokens == [TokenBin(0, 7, 8), TokenBin(8, 15, 8), TokenBin(16, 31, 4)]
    assert found.tokens_unknown == 1
    assert found.size_bytes == sum(p.stat().st_size for p in space.path.rglob("*") if p.is_file())
    created = lance.dataset(str(space.path)).to_table()["created_at"].to_pylist()
    assert (found.first_written, found.last_written) == (min(created), max(created))


def test_describe_scores(scores: SpaceInfo) -> None:
    found = describe(scores)
    assert (found.value, found.dim, found.rows) == ("score", 1, 2)
    assert found.counts["query_prefix"] == [ValueCount("q: ", 2)] and found.tokens == []


def test_a_prompt_for_each_text_is_counted_up_to_a_thousand(
    open_space: Callable[..., Space],
) -> None:
    space, texts = open_space(), [f"text {i}" for i in range(1200)]
    rows = make_rows(texts)
    space.append(Rows(rows.keys, rows.values, {"text": texts, "prompt": texts}))
    found = describe(info(space))
    assert len(found.counts["prompt"]) == 1000 and found.uncounted["prompt"] == 200


def test_describe_an_emptied_space(open_space: Callable[..., Space]) -> None:
    space, rows = open_space(), make_rows(["a"])
    space.append(rows)
    space.delete(rows.keys)
    found = describe(info(space))
    assert (found.rows, found.tokens, found.first_written) == (0, [], None)


def test_without_texts(open_space: Callable[..., Space]) -> None:
    space = open_space(store_text=False)
    space.append(make_rows(["a", "b"]))
    assert "prompt" not in describe(info(space)).counts
    text = find_text(info(space), ["a"], ["p: "])
    (match,) = nearest(info(space), text, 5)
    assert match.text is None
    with pytest.raises(MissingTextsError, match="has no texts, so other prompts cannot"):
        find_text(info(space), ["a"])
    with pytest.raises(ConfigError, match="has no column of texts"):
        search_words(info(space), "a", 5)


def test_find_a_text(open_space: Callable[..., Space]) -> None:
    space, rows = open_space(), make_rows(["a", "b"])
    space.append(rows)
    found = find_text(info(space), ["b"], ["p: "])
    assert np.array_equal(found.value, rows.values[1]) and found.n_tokens == 1


def test_a_text_under_other_prompts(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["it's"]))
    space.append(vectors_of(["it's"], np.ones((1, DIM)), prompt=None))
    with pytest.raises(MissingTextsError, match="with: 'p: '; one that embcache does not know"):
        find_text(info(space), ["it's"])
    with pytest.raises(MissingTextsError, match="with whatever prompt") as caught:
        find_text(info(space), ["it"])
    assert caught.value.missing == 1


def test_find_a_pair(scores: SpaceInfo) -> None:
    assert find_text(scores, ["a", "c"], ["q: ", ""]).value == [0.25]
    with pytest.raises(MissingTextsError, match="but with: 'q: ' and ''"):
        find_text(scores, ["a", "c"])
    with pytest.raises(MissingTextsError, match="with whatever prompt"):
        find_text(scores, ["b", "a"])  # the order counts
    with pytest.raises(ConfigError, match="holds scores: give a query and a document"):
        find_text(scores, ["a"])


def test_inputs_that_cannot_be_found(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    with pytest.raises(ConfigError, match="holds vectors: give one text"):
        find_text(info(space), ["a", "b"])
    with pytest.raises(InputError, match="lone surrogate"):
        find_text(info(space), ["\ud800"])


def test_a_damaged_row_is_not_shown(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["a", "b", "c"]))
    table = lancedb.connect(str(space.path.parent)).open_table(space.name)
    table.update(where="text = 'b'", values={"checksum": 1})
    with pytest.raises(CacheError, match="fails its checksum"):
        find_text(info(space), ["b"], ["p: "])
    matches = nearest(info(space), find_text(info(space), ["a"], ["p: "]), 5)
    assert [match.text for match in matches] == ["c"]


def test_nearest_against_numpy(open_space: Callable[..., Space]) -> None:
    space, texts = open_space(), [f"text {i}" for i in range(200)]
    rows = make_rows(texts)
    space.append(rows)
    space.append(rows)  # as two processes do
    found = nearest(info(space), find_text(info(space), ["text 7"], ["p: "]), 10)
    unit = rows.values / np.linalg.norm(rows.values, axis=1, keepdims=True)
    cosines = unit @ unit[7]
    order = [i for i in np.argsort(-cosines) if i != 7][:10]
    assert [match.text for match in found] == [texts[i] for i in order]
    assert np.allclose([match.score for match in found], cosines[order], atol=1e-6)


def test_nearest_of_a_lonely_text(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    assert nearest(info(space), find_text(info(space), ["a"], ["p: "]), 3) == []


def test_words_are_found_and_nothing_is_written(open_space: Callable[..., Space]) -> None:
    space = open_space()
    for seed, texts in enumerate((["the quick fox", "a lazy dog"], ["Quick, QUICK!", "it's"])):
        space.append(make_rows(texts, seed=seed))
    before = sorted(space.path.rglob("*"))
    found = search_words(info(space), "quick", 10)
    assert {match.text for match in found} == {"the quick fox", "Quick, QUICK!"}
    assert found[0].score >= found[1].score and found[0].prompt == "p: "
    assert search_words(info(space), "nothing", 10) == []
    assert len(search_words(info(space), "quick", 1)) == 1
    assert sorted(space.path.rglob("*")) == before


def test_words_in_a_space_of_scores(scores: SpaceInfo) -> None:
    with pytest.raises(ConfigError, match="has no column of texts"):
        search_words(scores, "a", 10)


def test_remove(open_space: Callable[..., Space], tmp_path: Path) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    link = tmp_path / "link.lance"
    link.symlink_to(space.path)
    with pytest.raises(CacheError, match="is a link"):
        remove_space(link)
    remove_space(space.path)
    assert list(space.path.parent.iterdir()) == []
    with pytest.raises(CacheError, match="No such file"):
        remove_space(space.path)
    assert list(space.path.parent.iterdir()) == []


def test_describe_a_broken_table(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    for path in (space.path / "data").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CacheError, match=r"Reading .* failed"):
        describe(info(space))
