from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.store import index as index_module
from embcache.store.index import KeyIndex, KeyParts, UnsortedKeys, unique_keys

# Few different values, so that first halves are shared and keys occur twice.
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30)


def as_keys(values: list[tuple[int, int]]) -> np.ndarray:
    return np.array(values, np.uint64).reshape(-1, 2)


@given(pairs, pairs, st.integers(0, 100))
def test_find_is_a_dict(
    stored: list[tuple[int, int]], wanted: list[tuple[int, int]], first: int
) -> None:
    row_ids = np.arange(len(stored), dtype=np.uint64)[::-1]  # committed in the other order
    built = KeyIndex.build(as_keys(stored), row_ids, first)
    expected = {key: first + row for row, key in enumerate(stored)}  # the last one wins
    assert built.find(as_keys(wanted)).tolist() == [expected.get(key, -1) for key in wanted]


@given(pairs)
def test_unique_keys(values: list[tuple[int, int]]) -> None:
    first, source = unique_keys(as_keys(values))
    assert first.tolist() == sorted(values.index(value) for value in set(values))
    assert source.tolist() == [values.index(value) for value in values]


@given(st.lists(pairs, max_size=6), pairs, st.sampled_from([1, 4, 2**18]))
def test_a_growing_index_is_a_dict(
    commits: list[list[tuple[int, int]]], wanted: list[tuple[int, int]], most: int
) -> None:
    expected: dict[tuple[int, int], int] = {}
    with patch.object(index_module, "_MERGED_UP_TO", most):
        parts, count = KeyParts(), 0
        for commit in commits:
            rows = np.arange(count, count + len(commit), dtype=np.uint64)
            parts = parts.extended(KeyIndex.build(as_keys(commit), rows, count))
            for row, key in enumerate(commit, count):
                expected.setdefault(key, row)  # the one that was committed first
            count += len(commit)
    assert len(parts) == count
    assert parts.find(as_keys(wanted)).tolist() == [expected.get(key, -1) for key in wanted]
    assert parts.keys().tolist() == as_keys([key for commit in commits for key in commit]).tolist()


def test_a_large_index() -> None:
    """Arrays in pages of their own, ties at the edges of pieces, parts that are left alone."""
    count = 3 * 2**17 + 5
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (count, 2), np.uint64)
    keys[:, 0] -= keys[:, 0] % 2**40  # some share their first halves
    keys[-1000:] = keys[:1000]
    row_ids = np.arange(count, dtype=np.uint64)
    expected = np.append(np.arange(count - 1000), np.arange(1000))
    built = KeyIndex.build(keys, row_ids)
    assert (np.diff(built.heads.astype(float)) >= 0).all()
    assert (built.find(keys) == expected).all()
    parts = KeyParts()
    for at in range(0, count, 10_000):
        rows = slice(at, at + 10_000)
        parts = parts.extended(KeyIndex.build(keys[rows], row_ids[rows], at))
    assert (parts.find(keys) == expected).all()
    assert 1 < len(parts.parts) < 12
    assert max(map(len, parts.parts)) <= 2**18
    assert (parts.keys() == keys).all()


def test_parts_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MERGED_UP_TO", 64)
    parts = KeyParts()
    for row in range(20_000):
        parts = parts.extended(KeyIndex.build(as_keys([(row, 0)]), np.zeros(1, np.uint64), row))
    assert len(parts.parts) < 100


def test_rows_that_are_missing_are_an_error() -> None:
    unsorted = UnsortedKeys(3)
    unsorted.add(as_keys([(1, 1)]), np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="1 rows were read where 3 should be"):
        unsorted.index()
    with pytest.raises(ValueError, match="broadcast"):
        UnsortedKeys(1).add(as_keys([(1, 1), (2, 2)]), np.zeros(2, np.uint64))


@pytest.mark.parametrize("copied_up_to", [0, 2**18])
def test_the_first_positions_of_an_index(
    copied_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it where the rows behind them were written again."""
    monkeypatch.setattr(index_module, "_COPIED_UP_TO", copied_up_to)
    keys = np.arange(40, dtype=np.uint64).reshape(20, 2)[::-1].copy()
    ids = np.arange(20, dtype=np.uint64)
    index = KeyParts((KeyIndex.build(keys[:8], ids[:8]), KeyIndex.build(keys[8:], ids[8:], 8)))
    for count in (0, 3, 8, 11, 20):
        found = index.first(count).find(keys)
        assert found.tolist() == [*range(count), *[-1] * (20 - count)]
        assert len(index.first(count)) == count
    assert index.first(20).parts == index.parts, "nothing is copied for nothing"


@given(pairs.filter(bool), pairs, st.lists(st.integers(0, 30), max_size=3))
def test_where_few_of_many_keys_go_no_array_is_copied(
    stored: list[tuple[int, int]], newer: list[tuple[int, int]], counts: list[int]
) -> None:
    """Keys that are gone are found no more, and are in no copy, merged index or list of keys."""
    rows = np.arange(len(stored), dtype=np.uint64)
    built = left = KeyIndex.build(as_keys(stored), rows)
    with (
        patch.object(index_module, "_COPIED_UP_TO", 0),
        patch.object(index_module, "_MOST_GONE", 1.0),
    ):
        for count in counts:
            left = left.first(count)
    kept = stored[: min([*counts, len(stored)])]
    expected: dict[tuple[int, int], int] = {}
    for row, key in enumerate([*kept, *newer]):
        expected.setdefault(key, row)
    assert left.heads is built.heads and len(left) == len(left.whole()) == len(kept)
    added = KeyIndex.build(as_keys(newer), np.arange(len(newer), dtype=np.uint64), len(kept))
    wanted = [*stored, *newer]
    for parts in (KeyParts((left.merged(added),)), KeyParts((left, added)), KeyParts((left,))):
        is_all = len(parts) == len(kept) + len(newer)
        known = expected if is_all else {k: row for k, row in expected.items() if row < len(kept)}
        found = [known.get(key, -1) for key in wanted]
        assert parts.find(as_keys(wanted)).tolist() == found
        assert [parts.find_one(*key) for key in wanted] == found
        assert parts.keys().tolist() == as_keys([*kept, *newer][: len(parts)]).tolist()
