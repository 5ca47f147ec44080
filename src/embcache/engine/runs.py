"""Runs of neighbours that take so many bytes at most: what is held at a time is bounded in bytes.

A number of texts bounds nothing: documents have 200 characters, or 60,000, and a few have millions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Sizes = npt.NDArray[np.int64]


def text_sizes(texts: Iterable[object]) -> Sizes:
    """Bytes that texts take in memory.

    Not of their UTF-8: a text with one emoji takes four bytes a character, an English one one.

    Args:
        texts: `n` texts, or whatever stands in their place; none is held on to.

    Returns:
        `(n,) int64`.
    """
    return np.fromiter(map(sys.getsizeof, texts), np.int64)


def runs(sizes: Sizes, most: int, most_items: int = sys.maxsize) -> Iterator[slice]:
    """Cut items into runs, in their order.

    Args:
        sizes: `(n,) int64`, bytes of each item.
        most: Bytes of a run at most; a larger item is a run by itself.
        most_items: Items of a run at most.

    Yields:
        Places of the items of a run; together they have each item once.
    """
    ends = np.cumsum(sizes)
    at, before = 0, 0
    while at < len(ends):
        stop = int(np.searchsorted(ends, before + most, side="right"))
        stop = min(max(stop, at + 1), at + most_items)
        yield slice(at, stop)
        at, before = stop, int(ends[stop - 1])
