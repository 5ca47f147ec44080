"""A store that writes nothing: rows in memory, over those of a space if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from embcache.errors import CacheError
from embcache.identity.keys import Keys
from embcache.store.base import Part, Snapshot
from embcache.store.forks import ForkLock
from embcache.store.index import KeyIndex, KeyParts, Positions, unique_keys
from embcache.store.rows import Rows
from embcache.store.snapshot import SpaceSnapshot
from embcache.store.space import Space
from embcache.store.verify import Values


@dataclass(frozen=True, eq=False)
class OverlaySnapshot:
    """Rows in memory over a snapshot of a space.

    Attributes:
        below: The space's.
        index: Keys of the rows in memory, by position.
        blocks: Their values, in the order of their positions.
        dropped: `(n, 2) uint64`, keys whose rows below are damaged: misses.
    """

    below: Snapshot
    index: KeyParts = field(default_factory=KeyParts)
    blocks: tuple[Values, ...] = ()
    dropped: Keys = field(default_factory=lambda: np.empty((0, 2), np.uint64))

    @property
    def dim(self) -> int | None:
        """Components of the vectors; None where there is none."""
        return self.blocks[0].shape[1] if self.blocks else self.below.dim

    @property
    def engine_version(self) -> str | None:
        """Of the space's first writer."""
        return self.below.engine_version

    def __len__(self) -> int:
        return len(self.below) + len(self.index)

    def find(self, keys: Keys) -> Positions:
        """As `Snapshot.find`; rows in memory lie behind the space's."""
        found = self.index.find(keys)
        found[found >= 0] += len(self.below)
        open_ = np.flatnonzero(found < 0)
        below = self.below.find(keys[open_])
        if len(self.dropped):
            gone = KeyIndex.build(self.dropped, np.arange(len(self.dropped), dtype=np.uint64))
            below[gone.find(keys[open_]) >= 0] = -1
        found[open_] = below
        return found

    def read(self, positions: Positions, keys: Keys) -> Iterator[Part]:
        """As `Snapshot.read`; rows in memory are what the engine returned, and never damaged."""
        below = np.flatnonzero(positions < len(self.below))
        for part in self.below.read(positions[below], keys[below]):
            yield Part(below[part.at], part.values, part.damaged)
        above = np.flatnonzero(positions >= len(self.below))
        above = above[np.argsort(positions[above], kind="stable")]
        rows = positions[above] - len(self.below)
        start = 0
        for block in self.blocks:
            first, last = np.searchsorted(rows, (start, start + len(block)))
            if last > first:
                values = block[rows[first:last] - start]
                yield Part(above[first:last], values, np.zeros(last - first, bool))
            start += len(block)


class Overlay:
    """What a call computes and may not write; see `Store`. Made for each call, and gone with it.

    Args:
        below: The space, which is only read; None for no cache at all.
    """

    def __init__(self, below: Space | None = None) -> None:
        self._below = below
        self._lock = ForkLock()
        self._snapshot = OverlaySnapshot(SpaceSnapshot())

    @property
    def name(self) -> str:
        """The space's."""
        return "no cache" if self._below is None else self._below.name

    def refresh(self) -> OverlaySnapshot:
        """See what was committed to the space by now."""
        with self._lock:
            below = None if self._below is None else self._below.refresh()
            if below is not None and below is not self._snapshot.below:
                self._snapshot = replace(self._snapshot, below=below)
            return self._snapshot

    def add(self, rows: Rows) -> OverlaySnapshot:
        """Keep rows in memory, those whose keys are not there yet."""
        with self._lock:
            return self._add(rows)

    def drop(self, keys: Keys) -> None:
        """Take the space's rows of these keys for misses; they stay where they are."""
        with self._lock:
            dropped = np.concatenate((self._snapshot.dropped, keys))
            self._snapshot = replace(self._snapshot, dropped=dropped)

    def _add(self, rows: Rows) -> OverlaySnapshot:
        old = self.refresh()
        first, _ = unique_keys(rows.keys)
        new = first[old.find(rows.keys[first]) < 0]
        if not len(new):
            return old
        dim = rows.values.shape[1]
        if old.dim not in (None, dim):
            raise CacheError(
                f"{self.name} holds vectors of {old.dim} components, and those to be added have "
                f"{dim}. One identity cannot have two dimensions."
            )
        row_ids = np.arange(len(old.index), len(old.index) + len(new), dtype=np.uint64)
        index = old.index.extended(KeyIndex.build(rows.keys[new], row_ids, len(old.index)))
        blocks = (*old.blocks, rows.take(new).values)
        self._snapshot = OverlaySnapshot(old.below, index, blocks, old.dropped)
        return self._snapshot
