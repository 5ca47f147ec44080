from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embcache.engine.runs import runs, text_sizes


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60), st.integers(1, 9))
def test_runs_have_each_item_once_and_are_bounded(sizes: list[int], most: int, items: int) -> None:
    array = np.array(sizes, np.int64)
    found = list(runs(array, most, items))
    assert [i for run in found for i in range(run.start, run.stop)] == [*range(len(sizes))]
    for run in found:
        assert 1 <= run.stop - run.start <= items
        assert array[run].sum() <= most or run.stop - run.start == 1
    for one, two in itertools.pairwise(found):  # and no smaller than need be
        full = array[one].sum() + array[two.start] > most or one.stop - one.start == items
        assert full


def test_sizes_are_those_in_memory() -> None:
    """Python keeps four bytes a character of a text that has one emoji."""
    english, emoji = text_sizes(["a" * 10_000, "a" * 9_999 + "\N{ROCKET}"])
    assert 10_000 < english < 10_100 and 40_000 < emoji < 40_100
    assert text_sizes([None, 5, "a"]).shape == (3,)  # type: ignore[list-item]
