"""A space as one call sees it, with what is not written to it in memory over its rows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from embcache.errors import CacheError, CacheWriteError, UnreachableError
from embcache.identity.keys import Keys
from embcache.store.base import Part, Snapshot
from embcache.store.forks import ForkLock
from embcache.store.index import KeyIndex, KeyParts, Positions, unique_keys
from embcache.store.refusals import error_number
from embcache.store.rows import Rows
from embcache.store.salvage import is_damage
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
    """What one call sees of a space, and what it cannot, or may not, write there; see `Store`.

    It is made for each call, and gone with it. Until a write fails, or if none is tried, rows go to
    the space; from then on they are kept in memory, so that the call has them.

    Args:
        below: The space; None for no cache at all.
        write: Whether rows are written to the space, as long as that works.
        write_or_fail: Whether a write that fails is raised; else `refusal` says why it failed.
        salvage: Whether to go on with what of a damaged space can be read; else it is an error.

    Attributes:
        refusal: Why rows are not written (any more) although they should be; None if they are.
        written: How many rows were added to the space, or found there when they were to be.
        unwritten: How many rows are in memory that should be in the space.
    """

    def __init__(
        self,
        below: Space | None = None,
        *,
        write: bool = False,
        write_or_fail: bool = False,
        salvage: bool = False,
    ) -> None:
        self._below = below
        self._write = write and below is not None
        self._write_or_fail = write_or_fail
        self._salvage = salvage
        self._lock = ForkLock()
        self._snapshot = OverlaySnapshot(SpaceSnapshot() if below is None else below.snapshot)
        self.refusal: CacheError | None = None
        self.written = self.unwritten = 0

    @property
    def name(self) -> str:
        """The space's."""
        return "no cache" if self._below is None else self._below.name

    @property
    def writes(self) -> bool:
        """Whether rows that are added now are written."""
        return self._write and self.refusal is None

    @property
    def snapshot(self) -> Snapshot:
        """What the last `refresh`, or `add`, saw."""
        old = self._snapshot
        return old if old.blocks or len(old.dropped) else old.below  # nothing to look through

    def refresh(self, *, now: bool = False) -> Snapshot:
        """See what was committed to the space by now, see `Space.refresh`."""
        with self._lock:
            if self._below is not None:
                self._see(
                    self._below.refresh_or_salvage(write=self.writes, now=now)
                    if self._salvage
                    else self._below.refresh(now=now)
                )
            return self.snapshot

    def leave_out(self, error: CacheError) -> Snapshot:
        """Find out what of the space cannot be read, and go on without it.

        Args:
            error: What reading rows of the last snapshot failed with.

        Raises:
            CacheError: `error`, where it is no damage, or damage is not to be passed over.
        """
        with self._lock:
            if self._below is None or not self._salvage or not is_damage(error):
                raise error
            self._see(self._below.salvage(write=self.writes, values=True))
            return self.snapshot

    def add(self, rows: Rows) -> Snapshot:
        """Write rows, or keep them in memory; those whose keys are not there yet."""
        with self._lock:
            if self._below is not None and self.writes:
                self._write_to(self._below, lambda space: self._commit(space, rows))
                self.written += len(rows) if self.writes else 0
                if self.writes and self._below.stages:
                    return self.snapshot  # whoever only fills a space reads none of them
            elif self.refusal is None:  # else looking might take minutes, a store's patience
                self.refresh()
            return self._add(rows)

    def drop(self, keys: Keys) -> None:
        """Remove the space's rows of these keys, or only take them for misses."""
        with self._lock:
            if self._below is not None and self.writes:
                self._write_to(self._below, lambda space: space.drop(keys))
            if not self.writes:
                dropped = np.concatenate((self._snapshot.dropped, keys))
                self._snapshot = replace(self._snapshot, dropped=dropped)

    def refuse(self, error: CacheError) -> None:
        """Write nothing from now on.

        Args:
            error: Why; raised where a write that fails is an error.
        """
        if self._write_or_fail:
            raise error
        self.refusal = error

    def _write_to(self, space: Space, write: Callable[[Space], None]) -> None:
        """Write to the space; a second time, where the first met damage or a deletion."""
        try:
            try:
                write(space)
            except CacheError as error:
                if self._salvage and is_damage(error):
                    self._see(space.salvage(write=True, values=False))
                elif not _was_removed(space, error):
                    raise
                write(space)
        except CacheError as error:
            refused = isinstance(error, (CacheWriteError, UnreachableError))
            if not (refused or is_damage(error)):
                raise
            self.refuse(error)

    def _commit(self, space: Space, rows: Rows) -> None:
        """Add rows, and once more where a deletion took them along at the same moment."""
        for _ in range(2):
            snapshot = space.add(rows)
            self._see(snapshot)
            if space.stages or (snapshot.find(rows.keys) >= 0).all():
                return
        raise space.removed_error()

    def _see(self, below: SpaceSnapshot) -> None:
        if below is not self._snapshot.below:
            self._snapshot = replace(self._snapshot, below=below)

    def _add(self, rows: Rows) -> Snapshot:
        """Keep those of some rows in memory that are not there by now."""
        old = self._snapshot
        first, _ = unique_keys(rows.keys)
        new = first[old.find(rows.keys[first]) < 0]
        if not len(new):
            return self.snapshot
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
        if self._write:
            self.unwritten += len(new)
        return self.snapshot


def _was_removed(space: Space, error: CacheError) -> bool:
    """Whether a folder went while it was written to: it is made again with the next try."""
    if space.location.folder is None:  # to look takes as long as the outage that it may be
        return False
    return error_number(error) == errno.ENOENT or not space.location.has_table()
