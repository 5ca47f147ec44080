"""Key index: where in a table each key lies. Pure numpy, in memory, 24 bytes a row.

At its peak, 33 bytes a row while it is built, and little more than 24 while it grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embcache.identity.keys import Keys

Positions = npt.NDArray[np.int64]
"""`(n,) int64`: a row's position in scan order; -1 where there is no such row."""

Words = npt.NDArray[np.uint64]
"""`(n,) uint64`: the first or the last eight bytes of keys, or row ids."""

_PIECE = 2**17  # words: 1 MiB
_MERGED_UP_TO = 2**18  # rows: merging takes 6 MiB for a moment
_LEAST_PARTS = 8
_COPIED_UP_TO = 2**18  # rows
_MOST_GONE = 0.25
_EVERY = 2**63 - 1


@dataclass(frozen=True)
class KeyIndex:
    """Keys sorted for binary search.

    Attributes:
        heads: `(n,) uint64`, the keys' first eight bytes, sorted.
        tails: `(n,) uint64`, their last eight bytes.
        positions: `(n,) int64`, key i lies at scan position positions[i]. Of equal keys the one
            committed first comes first.
        below: Keys at this position and beyond do not count: they are of rows that moved.
        gone: How many of the keys that is.
    """

    heads: Words
    tails: Words
    positions: Positions
    below: int = _EVERY
    gone: int = 0

    @classmethod
    def build(cls, keys: Keys, row_ids: Words, first: int = 0) -> KeyIndex:
        """Index rows that lie at scan positions `first`, `first + 1`, ...

        Args:
            keys: `(n, 2) uint64` in scan order.
            row_ids: `(n,) uint64`, Lance's stable row ids: they grow with every commit and
                survive compaction, so the lowest is the row that was committed first.
            first: Scan position of the first row.
        """
        unsorted = UnsortedKeys(len(keys))
        unsorted.add(keys, row_ids)
        return unsorted.index(first)

    def merged(self, newer: KeyIndex) -> KeyIndex:
        """One index of two; of equal keys the older row stays first.

        By insertion, not by sorting both again: half of the time, and of the memory.
        """
        first, second = self.whole(), newer.whole()
        spots = np.searchsorted(first.heads, second.heads, side="right")
        spots += np.arange(len(second))
        older = np.ones(len(first) + len(second), bool)
        older[spots] = False
        return KeyIndex(
            _woven(first.heads, second.heads, older, spots),
            _woven(first.tails, second.tails, older, spots),
            _woven(first.positions.view(np.uint64), second.positions, older, spots).view(np.int64),
        )

    def first(self, count: int) -> KeyIndex:
        """The keys at positions below `count`; itself where that is all of them.

        Where few of many go, in the same arrays: these may be mapped from a file, and a copy would
        take their memory in each process, at every merge of what was committed last.
        """
        count = min(count, self.below)
        kept = self.positions < count
        gone = len(kept) - int(np.count_nonzero(kept))
        if gone == self.gone:
            return self
        if len(kept) > _COPIED_UP_TO and gone <= _MOST_GONE * len(kept):
            return KeyIndex(self.heads, self.tails, self.positions, count, gone)
        return KeyIndex(self.heads[kept], self.tails[kept], self.positions[kept])

    def whole(self) -> KeyIndex:
        """The same keys in arrays that have no others; itself where that is so."""
        if not self.gone:
            return self
        kept = self.positions < self.below
        return KeyIndex(self.heads[kept], self.tails[kept], self.positions[kept])

    def __len__(self) -> int:
        return len(self.heads) - self.gone

    @property
    def keys(self) -> Keys:
        """`(n, 2) uint64`, sorted; a copy."""
        whole = self.whole()
        return np.column_stack((whole.heads, whole.tails))

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
            inside = at < len(self.heads)
            open_, at = open_[inside], at[inside]
            same_head = self.heads[at] == wanted[open_, 0]
            open_, at = open_[same_head], at[same_head]
            same = self.tails[at] == wanted[open_, 1]
            if self.gone:
                same &= self.positions[at] < self.below
            found[open_[same]] = self.positions[at[same]]
            open_ = open_[~same]
            spot[open_] += 1
        return found

    def find_one(self, head: int, tail: int) -> int:
        """Position of one key, given as its two halves; -1 where it is not there."""
        spot = int(np.searchsorted(self.heads, np.uint64(head)))
        while spot < len(self.heads) and self.heads[spot] == head:
            if self.tails[spot] == tail and self.positions[spot] < self.below:
                return int(self.positions[spot])
            spot += 1
        return -1


class UnsortedKeys:
    """Gathers the keys of rows in scan order, batch by batch, and becomes an index of them.

    Args:
        count: How many there will be.
    """

    def __init__(self, count: int) -> None:
        self._heads, self._tails, self._row_ids = (np.empty(count, np.uint64) for _ in range(3))
        self._filled = 0

    def add(self, keys: Keys, row_ids: Words) -> None:
        """The next rows', see `KeyIndex.build`."""
        start, self._filled = self._filled, self._filled + len(keys)
        rows = slice(start, self._filled)
        self._heads[rows], self._tails[rows] = keys[:, 0], keys[:, 1]
        self._row_ids[rows] = row_ids

    def index(self, first: int = 0) -> KeyIndex:
        """The index of what was added, which is gone then: what is sorted takes its place.

        Raises:
            ValueError: It is not as many rows as were announced.
        """
        count = len(self._heads)
        if self._filled != count:
            raise ValueError(f"{self._filled} rows were read where {count} should be")
        order = _order(self._heads, self._tails, self._row_ids)
        # In each other's place: what this takes is the most that a warm run takes for its keys.
        self._heads.sort()
        tails = np.take(self._tails, order, out=self._row_ids, mode="clip")  # "raise" copies
        positions = np.add(order, first, out=self._tails.view(np.int64))
        self._filled = -1
        return KeyIndex(self._heads, tails, positions)


@dataclass(frozen=True)
class KeyParts:
    """An index that grows: parts, oldest first."""

    parts: tuple[KeyIndex, ...] = ()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def extended(self, newer: KeyIndex) -> KeyParts:
        """This and newer keys; of equal ones the older row still comes first.

        Parts have halving sizes, so that each key is moved a few times, not at every commit. Large
        ones are left alone: merging two of them would take the memory of both once more. Their
        number grows with the logarithm of the number of keys.
        """
        parts = [*self.parts, newer]
        most = max(_MERGED_UP_TO, (len(self) + len(newer)) // _LEAST_PARTS)
        while (
            len(parts) > 1
            and len(parts[-2]) <= 2 * len(parts[-1])
            and len(parts[-2]) + len(parts[-1]) <= most
        ):
            newest = parts.pop()
            parts[-1] = parts[-1].merged(newest)
        return KeyParts(tuple(parts))

    def first(self, count: int) -> KeyParts:
        """The keys of the first `count` positions: what a rewritten end leaves of an index."""
        parts = (part.first(count) for part in self.parts)
        return KeyParts(tuple(part for part in parts if len(part)))

    def find(self, wanted: Keys) -> Positions:
        """As `KeyIndex.find`; of equal keys the oldest."""
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.arange(len(wanted))
        for part in self.parts:
            found[open_] = part.find(wanted[open_])
            open_ = open_[found[open_] < 0]
        return found

    def find_one(self, head: int, tail: int) -> int:
        """As `KeyIndex.find_one`; of equal keys the oldest."""
        for part in self.parts:
            if (position := part.find_one(head, tail)) >= 0:
                return position
        return -1

    def keys(self) -> Keys:
        """All of them by position, `(len(self), 2) uint64`, where positions are 0, 1, ..."""
        ordered = np.zeros((len(self), 2), np.uint64)  # one that is believed may leave some out
        for part in (each.whole() for each in self.parts):
            ordered[part.positions, 0] = part.heads
            ordered[part.positions, 1] = part.tails
        return ordered


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
    starts = run_starts(ordered)
    source = np.empty(count, np.int64)
    source[order] = order[starts][np.cumsum(starts) - 1]
    return np.sort(order[starts]), source


def run_starts(ordered: Keys) -> npt.NDArray[np.bool_]:
    """`(n,) bool`, False where a row of sorted keys is equal to the one before."""
    starts = np.ones(len(ordered), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return starts


def sorting_order(keys: Keys, rank: Words | Positions) -> Positions:
    """Order that sorts by key, then rank."""
    return _order(keys[:, 0], keys[:, 1], rank)


def _order(heads: Words, tails: Words, rank: Words | Positions) -> Positions:
    """Order that sorts by key, then rank.

    Only the first eight bytes are sorted, which NumPy does several times faster than a lexsort,
    and then, properly, the few rows that share them: duplicates.
    """
    order = np.argsort(heads)
    tied = np.zeros(len(heads), bool)
    for start in range(0, len(heads), _PIECE):  # in pieces: no sorted copy of them all
        part = heads[order[start : start + _PIECE + 1]]
        same = part[1:] == part[:-1]
        tied[start + 1 : start + len(part)] |= same
        tied[start : start + len(part) - 1] |= same
    if tied.any():
        rows = order[tied]
        order[tied] = rows[np.lexsort((rank[rows], tails[rows], heads[rows]))]
    return order


def _woven(
    older: Words, newer: Words | Positions, is_older: npt.NDArray[np.bool_], spots: Positions
) -> Words:
    woven = np.empty(len(is_older), np.uint64)
    woven[is_older] = older
    woven[spots] = newer
    return woven
