"""Key index: where in a table each key lies. Pure numpy, in memory, 40 bytes a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embcache.keys import Keys

Positions = npt.NDArray[np.int64]
"""`(n,) int64`: a row's position in scan order; -1 where there is no such row."""


@dataclass(frozen=True)
class KeyIndex:
    """Keys sorted for binary search.

    Attributes:
        keys: `(n, 2) uint64`, sorted by their first eight bytes.
        positions: `(n,) int64`, keys[i] lies at scan position positions[i]. Of equal keys the
            one committed first comes first.
    """

    keys: Keys
    positions: Positions

    @cached_property
    def heads(self) -> npt.NDArray[np.uint64]:
        """The keys' first eight bytes, contiguous: searchsorted would copy a strided column."""
        return np.ascontiguousarray(self.keys[:, 0])

    @classmethod
    def build(cls, keys: Keys, row_ids: npt.NDArray[np.uint64], first: int = 0) -> KeyIndex:
        """Index rows that lie at scan positions `first`, `first + 1`, ...

        Args:
            keys: `(n, 2) uint64` in scan order.
            row_ids: `(n,) uint64`, Lance's stable row ids: they grow with every commit and
                survive compaction, so the lowest is the row that was committed first.
            first: Scan position of the first row.
        """
        order = sorting_order(keys, row_ids)
        return cls(keys[order], order.astype(np.int64) + first)

    def merged(self, newer: KeyIndex) -> KeyIndex:
        """One index of two; of equal keys the older row stays first.

        By insertion, not by sorting both again: half of the time, and of the memory, which for
        tens of millions of keys is what counts.
        """
        spots = np.searchsorted(self.heads, newer.heads, side="right")
        return KeyIndex(
            np.insert(self.keys, spots, newer.keys, axis=0),
            np.insert(self.positions, spots, newer.positions),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, wanted: Keys) -> Positions:
        """Position of each wanted key, `(len(wanted),) int64`, -1 where it is not there."""
        found = np.full(len(wanted), -1, np.int64)
        if not len(self) or not len(wanted):
            return found
        # In sorted order the search walks the index once instead of jumping about in it.
        order = np.argsort(wanted[:, 0])
        spot = np.empty(len(wanted), np.int64)
        spot[order] = np.searchsorted(self.heads, wanted[order, 0])
        open_ = np.arange(len(wanted))
        # Nearly always one round: more only where two keys share their first eight bytes.
        while len(open_):
            at = spot[open_]
            inside = at < len(self)
            open_, at = open_[inside], at[inside]
            same_head = self.heads[at] == wanted[open_, 0]
            open_, at = open_[same_head], at[same_head]
            same = self.keys[at, 1] == wanted[open_, 1]
            found[open_[same]] = self.positions[at[same]]
            open_ = open_[~same]
            spot[open_] += 1
        return found


def unique_keys(keys: Keys) -> tuple[Positions, Positions]:
    """Find duplicates.

    Args:
        keys: `(n, 2) uint64`.

    Returns:
        `first`, `(u,) int64`: rows of first occurrences, ascending; and `source`, `(n,) int64`:
        for each row, the row of the first occurrence of its key.
    """
    count = len(keys)
    heads = np.sort(keys[:, 0])
    if (heads[1:] != heads[:-1]).all():  # the usual case, and 8 times faster
        everything = np.arange(count)
        return everything, everything
    order = sorting_order(keys, np.arange(count))
    ordered = keys[order]
    starts = np.ones(count, bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    source = np.empty(count, np.int64)
    source[order] = order[starts][np.cumsum(starts) - 1]
    return np.sort(order[starts]), source


def sorting_order(keys: Keys, rank: npt.NDArray[np.uint64] | Positions) -> Positions:
    """Order that sorts by key, then rank.

    Only the first eight bytes are sorted, which NumPy does several times faster than a lexsort,
    and then, properly, the few rows that share them: duplicates.
    """
    order = np.argsort(keys[:, 0])
    heads = keys[order, 0]
    same = heads[1:] == heads[:-1]
    if same.any():
        tied = np.zeros(len(keys), bool)
        tied[1:] = same
        tied[:-1] |= same
        rows = order[tied]
        order[tied] = rows[np.lexsort((rank[rows], keys[rows, 1], keys[rows, 0]))]
    return order
