"""What one's own space has not is looked up in a team's caches, before an engine is thought of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embcache.engine.base import Embedded
from embcache.errors import CacheError
from embcache.identity.keys import Keys
from embcache.pipeline.canaries import Canaries
from embcache.pipeline.job import Job
from embcache.pipeline.known_canaries import read_canaries
from embcache.pipeline.outbox import Outbox
from embcache.pipeline.patience import Beat
from embcache.pipeline.stats import Watcher
from embcache.pipeline.upstream_cache import UpstreamCache
from embcache.store import Database, Location, Rows, Space, SpaceSnapshot
from embcache.store.forks import ForkLock
from embcache.store.index import Positions
from embcache.store.verify import Values

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**20
"""Vectors that are taken from an upstream at once, so that memory stays bounded."""


PUSHED_BYTES = 16 * 2**20
"""Vectors in one commit upstream: a slow line gets on by one within the patience."""


@dataclass
class _Source:
    """A space of an upstream cache.

    Attributes:
        cache: What it is in.
        space: Its handle, made when it is first looked into.
        judged: Whether its canaries were compared with those that are known here.
        refused: Whether they differ: it is of another model.
        tried: Whether it was seen that it can be written.
        told: Whether the user was told of damaged rows.
    """

    cache: UpstreamCache
    space: Space | None = None
    judged: bool = False
    refused: bool = False
    tried: bool = False
    told: bool = False

    @property
    def usable(self) -> bool:
        return self.cache.usable and not self.refused


class _Piece(NamedTuple):
    """Rows that were taken: `at` says of which of the keys that were asked for, `(m,) int64`."""

    at: npt.NDArray[np.int64]
    values: Values
    n_tokens: npt.NDArray[np.int32] | None


class Upstream:
    """The spaces of one identity in upstream caches; see `serve` and `collect`.

    Args:
        caches: Where is looked, in this order. Encoders' other identities may share them.
        open_space: Gives the space of the identity in a cache; called when it is first needed.

    Attributes:
        canaries: Compares what the upstreams' spaces keep of them; None to compare nothing.
    """

    def __init__(
        self, caches: Sequence[UpstreamCache], open_space: Callable[[Database], Space]
    ) -> None:
        self._sources = [_Source(cache) for cache in caches]
        self._open_space = open_space
        self._lock = ForkLock()  # what one thread takes, no other one takes at the same time
        self._judging = ForkLock()
        self._outbox = Outbox()
        self.canaries: Canaries | None = None

    def __str__(self) -> str:
        return " and ".join(
            f"{one.cache.location}{'' if one.usable else ' (not asked: see the warning)'}"
            for one in self._sources
        )

    @property
    def writes(self) -> bool:
        """Whether what is encoded is to be written to one of them."""
        return any(one.cache.write and one.usable for one in self._sources)

    @property
    def locations(self) -> list[Location]:
        """Where they are."""
        return [one.cache.location for one in self._sources]

    def serve(
        self, job: Job, missing: Positions, watcher: Watcher, check: Callable[[], None]
    ) -> Positions:
        """Take what the upstreams have, and keep it in the job's store.

        Args:
            job: The call.
            missing: `(m,) int64`, rows that the store has not.
            watcher: Is told of each piece.
            check: Called before anything is kept, when an upstream's canaries are known: compares
                an engine that is at hand with them.

        Returns:
            The rows that no upstream has, or not intact.

        Raises:
            ChangedModelError: From `check`.
            CacheError: The job's own store cannot be written, and that is an error.
        """
        if not len(missing) or not any(one.usable for one in self._sources):
            return missing
        with self._lock.turn() as waited:
            if waited:  # what this thread misses, the other one may have taken
                job.refresh()
                missing = job.missing(missing)
            for source in self._sources:
                for rows, embedded in self._pieces(source, job, missing, check):
                    job.upstream += job.keep(rows, embedded)
                    # Of a space that stages, the snapshot does not have them: no look-up tells.
                    missing = missing[~np.isin(missing, rows)]
                    if self.canaries is not None and job.store.writes:
                        self.canaries.commit()
                    watcher.found(len(rows))
                missing = job.missing(missing)  # what others have committed
            return missing

    def try_writing(self) -> None:
        """Find out whether a commit would go through, before anything is computed for it."""
        for source in self._sources:
            if source.cache.write and source.usable and not source.tried:
                source.tried = source.cache.ask(partial(self._try_writing, source)) is not None

    def collect(self, job: Job, rows: Positions, embedded: Embedded) -> None:
        """Have what was encoded written upstream, if it may be; in a large commit, later.

        Args:
            job: The call.
            rows: `(m,) int64`, which items were encoded.
            embedded: Their values.
        """
        if not self.writes:
            return
        listed = rows.tolist()
        columns = job.request.columns(listed)
        chunk = Rows(job.keys[rows], embedded.vectors, columns, embedded.n_tokens)
        if self._outbox.put(chunk, int(job.request.sizes(listed).sum())):
            self.flush()

    def flush(self) -> None:
        """Write what was collected; a warning says where that fails."""
        rows = self._outbox.take()
        if rows is None:
            return
        for source in self._sources:
            if source.cache.write and source.usable and self._is_ours(source):
                source.cache.ask(partial(self._push, source, rows))

    def _pieces(
        self, source: _Source, job: Job, missing: Positions, check: Callable[[], None]
    ) -> Iterator[tuple[Positions, Embedded]]:
        """What an upstream has of some rows, by pieces, in the order in which it lies there."""
        if not len(missing) or not source.usable:
            return
        found = source.cache.ask(partial(self._find, source, job.keys[missing]))
        if found is None or not (found >= 0).any() or not self._is_ours(source):
            return
        assert source.space is not None
        check()
        there = np.flatnonzero(found >= 0)
        rows = missing[there[np.argsort(found[there], kind="stable")]]
        dim = source.space.snapshot.dim or 1
        if job.snapshot.dim not in (None, dim):
            self._refuse(
                source, f"its vectors have {dim} components, those here {job.snapshot.dim}"
            )
            return
        step = max(1, PIECE_BYTES // (4 * dim))
        for start in range(0, len(rows), step):
            wanted = rows[start : start + step]
            piece = source.cache.ask(partial(self._read, source, job.keys[wanted]))
            if piece is None:
                return
            self._tell_of_damage(source, len(wanted) - len(piece.at))
            if len(piece.at):
                yield wanted[piece.at], Embedded(piece.values, piece.n_tokens)

    def _is_ours(self, source: _Source) -> bool:
        """Whether an upstream's canaries, if it has any, fit those that are known here."""
        canaries = self.canaries
        if canaries is None or source.judged:
            return True
        with self._judging:
            if source.refused:
                return False
            theirs = source.cache.ask(lambda _: read_canaries(self._opened(source)))
            if theirs is None:
                return False
            if different := canaries.difference(theirs):
                self._refuse(source, f"its vectors are another model's: {different}")
                return False
            canaries.lend(theirs)
            source.judged = bool(theirs.values)
            return True

    def _tell_of_damage(self, source: _Source, lost: int) -> None:
        if lost:
            log = logger.info if source.told else logger.warning
            log(
                "%d rows of the upstream cache %s fail their checksum (damaged on disk) or are "
                "gone, and are not used.",
                lost,
                source.cache.location,
            )
            source.told = True

    def _refuse(self, source: _Source, reason: str) -> None:
        source.refused = True
        logger.warning(
            "The upstream cache %s is not used, and the run goes on without: %s. Remove the space "
            "%s there (`CachedSpace.remove`), or the one here, whichever is wrong.",
            source.cache.location,
            reason,
            source.space.name if source.space is not None else "",
        )

    def _opened(self, source: _Source) -> Space:
        """The upstream's space; within `ask`."""
        if source.space is None:
            source.space = self._open_space(source.cache.open())
        return source.space

    def _find(self, source: _Source, keys: Keys, _: Beat) -> Positions:
        snapshot = self._opened(source).refresh()
        if not len(snapshot):
            source.cache.check_exists()  # a folder that is gone looks like one without rows
        return snapshot.find(keys)

    def _read(self, source: _Source, keys: Keys, beat: Beat) -> _Piece:
        """Intact rows of some keys; in a newer version, where a compaction removed files."""
        space = self._opened(source)
        snapshot = space.snapshot
        try:
            return _read(snapshot, keys, beat)
        except CacheError:
            newer = space.refresh(now=True)
            if newer is snapshot:
                raise
            return _read(newer, keys, beat)

    def _try_writing(self, source: _Source, _: Beat) -> bool:
        location = self._opened(source).location
        location.parent.try_writing()  # a store may have no conditional writes
        location.try_committing()
        return True

    def _push(self, source: _Source, rows: Rows, beat: Beat) -> bool:
        """Commit rows, and the canaries that are known here and not there."""
        space = self._opened(source)
        step = max(1, PUSHED_BYTES // rows.values[:1].nbytes)
        for start in range(0, len(rows), step):
            space.add(rows.take(np.arange(start, min(start + step, len(rows)))))
            beat()
        for known in [] if self.canaries is None else self.canaries.known():
            canaries = known.rows()
            if canaries is not None:
                space.canaries.add(canaries)
                beat()
        space.keep_index()
        return True


def _read(snapshot: SpaceSnapshot, keys: Keys, beat: Beat) -> _Piece:
    positions = snapshot.find(keys)
    at = np.flatnonzero(positions >= 0)
    positions = positions[at]
    values = np.empty((len(at), snapshot.dim or 0), np.float32)
    intact = np.zeros(len(at), bool)
    for part in snapshot.read(positions, keys[at]):
        values[part.at] = part.values
        intact[part.at] = ~part.damaged
        beat()
    if not intact.all():
        at, positions, values = at[intact], positions[intact], values[intact]
    return _Piece(at, values, _n_tokens(snapshot, positions))


def _n_tokens(snapshot: SpaceSnapshot, positions: Positions) -> npt.NDArray[np.int32] | None:
    """Token counts of some rows, where all of them have one."""
    if "n_tokens" not in snapshot.columns or not len(positions):
        return None
    column = snapshot.take(positions, ["n_tokens"]).column("n_tokens")
    return None if column.null_count else column.to_numpy()
