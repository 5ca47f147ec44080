"""One request on its way through a pipeline: what is known of it, and what is still to be read."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from embcache.engine.base import Embedded
from embcache.errors import CacheError
from embcache.identity.keys import Keys
from embcache.pipeline.request import Request
from embcache.pipeline.result import Result
from embcache.store import Overlay, Rows, Snapshot
from embcache.store.index import Positions

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at rows that other processes move meanwhile


class Job:
    """One request on its way: its keys, the store, what that held last, and the result.

    Args:
        request: The items.
        keys: `(n, 2) uint64`, row i is the key of item i.
        source: `(n,) int64`, for each item the first one with the same key, as `unique_keys`.
        store: Where values are looked up and kept.
        snapshot: What the store holds at the beginning.
        result: Filled with the values; None where only the store is filled.

    Attributes:
        refused: Items that the engine refused, and why; of duplicates, the first.
        told: Whether the user was told that what is encoded is not kept.
        upstream: How many distinct items were found upstream.
    """

    def __init__(
        self,
        request: Request,
        keys: Keys,
        source: Positions,
        store: Overlay,
        snapshot: Snapshot,
        result: Result | None,
    ) -> None:
        self.request = request
        self.keys = keys
        self.source = source
        self.refused: dict[int, str] = {}
        self.told = False
        self.upstream = 0
        self.store = store
        self.snapshot = snapshot
        self.result = result
        self._looked_up: tuple[Snapshot, Positions, Positions] | None = None

    def refresh(self) -> None:
        """Look for what was committed to the store meanwhile."""
        self.snapshot = self.store.refresh(now=True)

    def make_room(self) -> None:
        """Allocate the result if its width is known by now."""
        if self.result is not None and self.snapshot.dim is not None:
            self.result.allocate(self.snapshot.dim)

    def missing(self, rows: Positions) -> Positions:
        """Those of some rows whose keys the store has not."""
        return rows[self._find(rows) < 0]

    def read(self, rows: Positions) -> Positions:
        """Copy rows into the result.

        A compaction by another process may remove the files of the version that was looked up in.
        The error is then the same as for damage, but there is a newer version of the table: the
        rows are looked up and read again in that. Where there is none, the store is asked to leave
        out what cannot be read, and its rows are among those that it has not.

        Returns:
            The rows that the store has not, or not intact, sorted.
        """
        for _ in range(_ATTEMPTS):
            snapshot = self.snapshot
            try:
                return self._read(rows)
            except CacheError as error:
                self.refresh()
                if self.snapshot is snapshot:
                    self.snapshot = self.store.leave_out(error)
                else:
                    logger.info("%s was compacted meanwhile; reading again", self.store.name)
        return self._read(rows)

    def keep(self, rows: Positions, embedded: Embedded) -> int:
        """Commit a chunk.

        Where another process has committed an item meanwhile, its row counts, here and in every
        later run.

        Returns:
            How many items the chunk has.
        """
        columns = self.request.columns(rows.tolist())
        self.snapshot = self.store.add(
            Rows(self.keys[rows], embedded.vectors, columns, embedded.n_tokens)
        )
        self.make_room()  # after the commit: what is computed is kept, whatever is refused here
        return len(rows)

    def with_duplicates(self, items: Mapping[int, str]) -> dict[int, str]:
        """Add duplicates to items.

        Args:
            items: What is known of items; of duplicates, of the first.

        Returns:
            The same of all their rows, in the caller's order.
        """
        rows = np.flatnonzero(np.isin(self.source, list(items))).tolist()
        return {row: items[int(self.source[row])] for row in rows}

    def _read(self, rows: Positions) -> Positions:
        assert self.result is not None
        self.make_room()
        self.result.expect_all()
        positions = self._find(rows)
        found = positions >= 0
        hits = rows[found]
        failed = [rows[~found]]
        for at, values, damaged in self.snapshot.read(positions[found], self.keys[hits]):
            if damaged.any():
                failed.append(hits[at[damaged]])
                at, values = at[~damaged], values[~damaged]
            self.result.put(hits[at], values)
        return np.sort(np.concatenate(failed))

    def _find(self, rows: Positions) -> Positions:
        """Positions of some rows in the snapshot, -1 for a miss; the last answer is kept."""
        known = self._looked_up
        if known is None or known[0] is not self.snapshot or known[1] is not rows:
            known = (self.snapshot, rows, self.snapshot.find(self.keys[rows]))
            self._looked_up = known
        return known[2]
