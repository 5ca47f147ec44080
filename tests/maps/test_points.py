from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import ConfigError
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.maps.points import Points, sample_points
from embcache.store import SCORES, Location, Rows, Space
from embcache.tools.compact import compact_space
from tests.spaces import IDENTITY, make_rows
from tests.store.test_damage import data_files, flip_bit
from tests.tools.test_merge import space_in


def filled(cache: Path) -> Space:
    """60 rows with a prompt, in two commits, and 3 without."""
    space = space_in(cache)
    for part in (0, 1):
        texts = [f"text {i}" for i in range(30 * part, 30 * part + 30)]
        space.add(make_rows(texts, seed=part))
    texts = ["other", "more text", "words"]
    keys = text_keys(IDENTITY.to_bytes(), "", texts)
    vectors = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    space.add(Rows(keys, vectors, {"text": texts, "prompt": ""}))
    return space


def texts_of(points: Points) -> list[Any]:
    return list(points.columns["text"].to_pylist())


def test_each_vector_has_its_own_text(tmp_path: Path) -> None:
    space = filled(tmp_path)
    points = sample_points(space, limit=20)
    assert len(points) == len(points.columns) == 20 and points.matched == 63
    assert points.vectors.shape == (20, 8) and points.vectors.dtype == np.float32
    expected = {
        f"text {30 * part + i}": vector.tolist()
        for part in (0, 1)
        for i, vector in enumerate(make_rows(["x"] * 30, seed=part).values)
    }
    known = 0
    for text, vector in zip(texts_of(points), points.vectors, strict=True):
        known += text in expected
        assert text not in expected or vector.tolist() == expected[text]
    assert known >= 17
    assert points.columns.column_names == ["text", "prompt", "prompt_type", "task", "n_tokens"]


def test_the_seed_decides_which_rows(tmp_path: Path) -> None:
    space = filled(tmp_path)
    first = sample_points(space, limit=20)
    again = sample_points(space, limit=20)
    assert (first.vectors == again.vectors).all() and first.columns.equals(again.columns)
    assert texts_of(sample_points(space, limit=20, seed=1)) != texts_of(first)
    compact_space(space)
    assert texts_of(sample_points(space, limit=20)) == texts_of(first)


def test_the_order_of_writing_decides_nothing(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    drawn = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        space = space_in(tmp_path / name)
        space.add(make_rows(order))
        drawn.append(texts_of(sample_points(space, limit=10)))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"prompt": "p: "}, 60),
        ({"prompt": ""}, 3),
        ({"contains": "text 1"}, 11),
        ({"prompt": "p: ", "contains": "text 1"}, 11),
        ({"contains": "text"}, 61),
    ],
)
def test_filters(tmp_path: Path, filters: dict[str, str], count: int) -> None:
    points = sample_points(filled(tmp_path), **filters)
    assert len(points) == points.matched == count
    assert all(filters.get("contains", "") in text for text in texts_of(points))
    if "prompt" in filters:
        assert set(points.columns["prompt"].to_pylist()) == {filters["prompt"]}
    assert len(sample_points(filled(tmp_path), limit=3, **filters)) == 3


def test_a_key_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    space, rows = space_in(tmp_path), make_rows(["a", "b", "c", "d"])
    space.add(rows)
    space.add(make_rows(["c", "b"], seed=9))
    points = sample_points(space)
    assert points.matched == 4 and sorted(texts_of(points)) == ["a", "b", "c", "d"]
    found = dict(zip(texts_of(points), points.vectors.tolist(), strict=True))
    assert found == dict(zip("abcd", rows.values.tolist(), strict=True))  # the first ones
    assert sample_points(space, prompt="p: ").matched == 4


def damage(space: Space, vector: np.ndarray) -> None:
    (path,) = [path for path in data_files(space) if vector.tobytes() in path.read_bytes()]
    flip_bit(path, path.read_bytes().index(vector.tobytes()) + 9, 2)


def test_damaged_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space, rows = space_in(tmp_path), make_rows([f"{i}" for i in range(50)], dim=32)
    space.add(rows)
    damage(space, rows.values[3])
    points = sample_points(space)
    assert (len(points), points.matched, points.damaged) == (49, 50, 1)
    assert "3" not in texts_of(points)
    expected = [rows.values[int(text)].tolist() for text in texts_of(points)]
    assert points.vectors.tolist() == expected
    assert "1 of 50 rows drawn" in caplog.text and "damaged" in caplog.text


def test_a_text_that_is_not_its_keys_is_left_out(tmp_path: Path) -> None:
    space = space_in(tmp_path)
    space.add(make_rows(["elephant", "b", "c", "d"]))
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"elephant") + 2, bit=1)
    points = sample_points(space)
    assert sorted(texts_of(points)) == ["b", "c", "d"] and points.damaged == 1
    assert len(points.vectors) == 3


def test_too_few_points(tmp_path: Path) -> None:
    space, rows = space_in(tmp_path), make_rows(["a", "b", "c"], dim=32)
    space.add(rows)
    with pytest.raises(ConfigError, match=r"1 of 1 rows .* needs 3 points\. Widen the filters"):
        sample_points(space, contains="a")
    with pytest.raises(ConfigError, match="limit=2: a map needs 3 points"):
        sample_points(space, limit=2)
    damage(space, rows.values[0])
    with pytest.raises(ConfigError, match=r"2 of 3 rows .* `check_space` with fix=True"):
        sample_points(space)
    space.drop(rows.keys)
    with pytest.raises(ConfigError, match="0 of 0 rows"):
        sample_points(space)


def test_scores_are_refused(tmp_path: Path) -> None:
    identity = Identity("scoring", "1", "float32")
    space = space_in(tmp_path, identity, layout=SCORES)
    keys = pair_keys(identity.to_bytes(), ("", ""), list("qrs"), list("def"))
    space.add(Rows(keys, np.ones((3, 1), np.float32), {"query": "q", "document": "d"}))
    with pytest.raises(ConfigError, match="holds scores, one number a pair"):
        sample_points(space)


def test_without_texts(tmp_path: Path) -> None:
    space = space_in(tmp_path, store_text=False)
    space.add(make_rows(list("abcd")))
    points = sample_points(space)
    assert points.columns.column_names == ["prompt_type", "task", "n_tokens"] and len(points) == 4
    with pytest.raises(ConfigError, match=r"prompt='p: ': the space has no column .* Leave this"):
        sample_points(space, prompt="p: ")
    with pytest.raises(ConfigError, match=r"contains='a': the space has no texts .* Leave this"):
        sample_points(space, contains="a")


def test_no_space(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no space"):
        sample_points(Space(Location.of(tmp_path)))
