from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embcache.store.index import KeyIndex, unique_keys

# Few different values, so that first halves are shared and keys occur twice.
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30)


def as_keys(values: list[tuple[int, int]]) -> np.ndarray:
    return np.array(values, np.uint64).reshape(-1, 2)


@given(pairs, pairs, st.integers(0, 100))
def test_find_is_a_dict(
    stored: list[tuple[int, int]], wanted: list[tuple[int, int]], first: int
) -> None:
    row_ids = np.arange(len(stored), dtype=np.uint64)[::-1]  # committed in the other order
    index = KeyIndex.build(as_keys(stored), row_ids, first)
    expected = {key: first + row for row, key in enumerate(stored)}  # the last one wins
    assert index.find(as_keys(wanted)).tolist() == [expected.get(key, -1) for key in wanted]


@given(pairs)
def test_unique_keys(values: list[tuple[int, int]]) -> None:
    first, source = unique_keys(as_keys(values))
    assert first.tolist() == sorted(values.index(value) for value in set(values))
    assert source.tolist() == [values.index(value) for value in values]
