"""From a request to its values: look up, encode what is missing, write it back, and assemble.

Keys -> dedupe -> lookup -> encode misses -> write back -> the caller's order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from embcache.engine.base import Embedded, Engine
from embcache.errors import CacheError, CacheWriteError, RefusedTextsError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.pipeline.canaries import Canaries
from embcache.pipeline.checked_engine import CheckedEngine
from embcache.pipeline.chunks import (
    CHUNK_SECONDS,
    CHUNK_SECONDS_IN_A_STORE,
    Chunker,
    Refuse,
)
from embcache.pipeline.embedding import Embedder, Limit
from embcache.pipeline.job import Job
from embcache.pipeline.messages import (
    failing_error,
    missing_error,
    refused_error,
    unwritten_message,
)
from embcache.pipeline.policies import CompareCanaries, OnMiss, OnWriteError
from embcache.pipeline.request import Request
from embcache.pipeline.result import Result, Truncation, Vectors
from embcache.pipeline.stats import Bar, EncodeStats, Watcher
from embcache.pipeline.upstream import Upstream
from embcache.store import Overlay, Space
from embcache.store.forks import ForkLock
from embcache.store.index import Positions, unique_keys
from embcache.store.traffic import Traffic

logger = logging.getLogger(__name__)

Claim = Callable[[Keys], npt.NDArray[np.bool_]]
"""Gets `(n, 2) uint64` keys, and returns `(n,) bool`: which of them the caller is to encode."""

_ATTEMPTS = 3  # at rows that other processes move or damage meanwhile


class Pipeline:
    """Serves a request's items from a store and sends only what is missing to the engine.

    An item is a text, or a pair of texts; its value a vector, or a score, which is a vector of one
    component here. Several threads may use one pipeline: hits are read side by side, and one
    thread at a time encodes.

    Args:
        engine: Computes values; started at the first miss.
        identity: Identity of the values, with a settled dtype.
        space: Where values are kept; None for no cache.
        on_miss: "encode"; or "raise", which never starts the engine and raises instead.
        write: Whether new values are written to the space; otherwise they live in memory, for the
            duration of the call.
        check_engine: Called when the engine has started, before its first value is used; raises
            where it is not the one that the identity names.
        truncation: Cuts vectors on their way to the caller; None to return them whole.
        engine_lock: Held while the engine works. Pipelines that share an engine must share its
            lock; None makes one.
        on_write_error: What becomes of a call to `encode` where the space cannot be written: "warn"
            goes on, with what it computes in memory; "raise" ends it. `fill` is always ended.
        canaries: When the space's canaries are compared with the engine: "at start", after each
            start of the engine and before it is used; "before hits", besides, before the first
            hit is handed out; or "never".
        upstream: Where is looked for what the space has not, before the engine is started; None
            for nowhere. It is this pipeline's alone.

    Attributes:
        identity: As given.
        space: As given.
        chunker: Cuts what is missing into chunks.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        space: Space | None,
        *,
        on_miss: OnMiss = "encode",
        write: bool = True,
        check_engine: Callable[[], None] = lambda: None,
        truncation: Truncation | None = None,
        engine_lock: ForkLock | None = None,
        on_write_error: OnWriteError = "warn",
        canaries: CompareCanaries = "at start",
        upstream: Upstream | None = None,
    ) -> None:
        self._engine = engine
        self._on_miss = on_miss
        self._on_write_error = on_write_error
        self._write = write and space is not None
        self._truncation = truncation
        self._engine_lock = engine_lock or ForkLock()
        self._tried = self._told = False
        self._counting = ForkLock()
        self._counted = Traffic()
        self._upstream = upstream
        own = None
        if canaries != "never" and not (space is None and upstream is None):
            keeps = self._write or (upstream is not None and upstream.writes)
            make = keeps and on_miss == "encode"
            own = Canaries(engine, space, identity, write=self._write, make=make)
        if upstream is not None:
            upstream.canaries = own
        self._checked = CheckedEngine(
            engine,
            self._engine_lock,
            space if self._write else None,
            own,
            check=check_engine,
            before_hits=canaries == "before hits",
        )
        self.identity = identity
        self.space = space
        remote = space is not None and space.location.folder is None
        self.chunker = Chunker(engine, CHUNK_SECONDS_IN_A_STORE if remote else CHUNK_SECONDS)
        self._limit = Limit()

    def encode(self, request: Request) -> tuple[Vectors, EncodeStats]:
        """Values of all items: what is missing is filled in, then all is read.

        Args:
            request: The items.

        Returns:
            `(n, dim) float32`, row i = item i, and counts of what was done. For no items `dim` is
            that of the space, or 0 where the space has no rows yet.

        Raises:
            InputError: A text is no `str`, or has no UTF-8 form; the message names the row.
            RefusedTextsError: The engine refuses texts. All others are encoded and written by
                then; where nothing is written, it is raised as soon as one is found.
            ConfigError: More components are to be kept than the vectors have.
            MissingTextsError: Items are missing and `on_miss="raise"`.
            CacheError: The space cannot be read; or, with `on_write_error="raise"`, written.
            EngineError: The engine does not start, fails, or returns NaN or infinity.
        """
        store = self._open_store(self._on_write_error)
        before = self._traffic()
        with ThreadPoolExecutor(1, "embcache-opener") as opener:  # while the keys are computed
            opened = opener.submit(store.refresh)
            keys = request.keys(self.identity.to_bytes())
            first, source = unique_keys(keys)
        result = Result(len(keys), self._truncation)
        job = Job(request, keys, source, store, opened.result(), result)
        job.make_room()  # before anything is encoded: a cut may be refused there
        try:
            encoded = self._serve(job, first)
        finally:
            self.flush()
        result.repeat(source)
        if store.refusal is None and store.written:
            if self._told:
                logger.info("%s is written again", store.name)
            self._told = False  # only now: a disk that is almost full takes a little in each call
        self._checked.ended(job)
        if self.space is not None and self._write:
            self.space.compactor.join()  # who has the vectors may remove the cache's folder
            self.space.keep_index()
        hits = max(0, len(first) - encoded)  # what another process removed is encoded twice
        seconds = time.perf_counter() - request.began
        sent = self._sent(before)
        stats = EncodeStats(
            *(len(keys), len(first), hits, encoded, seconds, request.unit),
            unwritten=store.unwritten,
            upstream=job.upstream,
            requests=sent.requests,
            bytes=sent.bytes,
        )
        logger.info("%s (task %s, %s, %s)", stats, request.task, request.prompts, store.name)
        return result.values, stats

    def fill(
        self,
        request: Request,
        keys: Keys,
        *,
        watcher: Watcher,
        refuse: Refuse,
        stop: Callable[[], bool] = lambda: False,
        claim: Claim | None = None,
    ) -> EncodeStats:
        """Write what is missing to the space, and nothing else: no vector is read or returned.

        What other processes have committed since the space's last `refresh` is not looked for.
        Items that the engine refuses are left out.

        Args:
            request: The items.
            keys: `(n, 2) uint64`, the items' keys: `request.keys(...)`, which the caller may
                compute ahead in another thread.
            watcher: Is told of the engine's start and of each chunk.
            refuse: Called with items that the engine refuses, duplicates included, and why, before
                their neighbours are encoded; it may raise.
            stop: Asked before each chunk; once it returns True, nothing more is encoded, and what
                was encoded until then is committed.
            claim: Asked which of the missing keys are this call's; the others somebody else
                encodes, and they count as hits. None if all of them are.

        Returns:
            What was done; `encoded` is less than `unique - hits - refused` if `stop` ended it.

        Raises:
            CacheError: There is no space that may be written, or writing to it fails.
            EngineError: The engine does not start, fails, or returns NaN or infinity.
        """
        if self.space is None or not self._write:
            raise CacheError("There is no cache to fill: give a cache_path that can be written.")
        first, source = unique_keys(keys)
        store = self._open_store("raise")
        before = self._traffic()
        job = Job(request, keys, source, store, store.snapshot, None)
        missing = job.missing(first)
        if claim is not None and len(missing):
            missing = missing[claim(keys[missing])]
        missing = self._ask_upstream(job, missing, watcher)
        encoded = 0
        if len(missing) and not stop():
            encoded = self._fill(
                job, missing, watcher, lambda found: refuse(job.with_duplicates(found)), stop
            )
        self._checked.ended(job)
        self.space.keep_index()
        seconds = time.perf_counter() - request.began
        hits, refused = len(first) - len(missing), len(job.refused)
        sent = self._sent(before)
        return EncodeStats(
            *(len(keys), len(first), hits, encoded, seconds, request.unit, refused),
            upstream=job.upstream,
            requests=sent.requests,
            bytes=sent.bytes,
        )

    def flush(self) -> None:
        """Write upstream what was encoded, if that is wanted; after the last `fill`."""
        if self._upstream is not None:
            self._upstream.flush()

    def refresh(self) -> None:
        """Look for what other processes have committed to the space; `fill` does not do it.

        Raises:
            CacheError: The space cannot be read.
        """
        self._open_store("raise").refresh()

    def _traffic(self) -> Traffic:
        """What went to and from the cache and its upstreams until now."""
        places = [] if self.space is None else [self.space.location]
        if self._upstream is not None:
            places += self._upstream.locations
        return Traffic(*map(sum, zip(Traffic(), *(one.traffic for one in places), strict=True)))

    def _sent(self, before: Traffic) -> Traffic:
        """What went to and fro since then, but for what another thread's call has counted."""
        with self._counting:
            now = self._traffic()
            since = Traffic(*map(max, before, self._counted))
            self._counted = now
            return now.since(since)

    def _open_store(self, on_write_error: OnWriteError) -> Overlay:
        """The space as one call sees it."""
        return Overlay(
            self.space,
            write=self._write,
            write_or_fail=on_write_error == "raise",
            salvage=self._on_miss == "encode",
        )

    def _serve(self, job: Job, first: Positions) -> int:
        """Fill what is missing and read all, until all is read.

        Args:
            job: The call.
            first: `(u,) int64`, rows of distinct keys.

        Returns:
            How many items were encoded.
        """
        request, encoded, rows = job.request, 0, first
        missing = job.missing(rows)
        hits = len(first) - len(missing)
        with Bar(len(first), hits, request.unit, request.verb, shown=request.show_progress) as bar:
            for attempt in range(_ATTEMPTS):
                missing = self._ask_upstream(job, missing, bar)
                if len(missing):
                    if self._on_miss == "raise":
                        raise missing_error(request, missing, self.space, self._upstream)
                    encoded += self._fill(job, missing, bar, self._refuse_at_once(job))
                    if job.refused:
                        raise self._refused_error(job)
                elif len(rows):
                    self._checked.check_hits(request)
                rows = job.read(rows)
                if not len(rows):
                    return encoded
                if attempt == _ATTEMPTS - 2:
                    job.store.refuse(failing_error(job.store.name))
                rows = self._read_again(job, rows)
                missing = job.missing(rows)
        raise failing_error(job.store.name)

    def _ask_upstream(self, job: Job, missing: Positions, watcher: Watcher) -> Positions:
        """Take what is missing and upstream; returns what is still missing."""
        if self._upstream is None or not len(missing):
            return missing
        left = self._upstream.serve(
            job, missing, watcher, lambda: self._checked.check_hits(job.request)
        )
        self._tell_of_refusal(job, len(left))
        return left

    def _refuse_at_once(self, job: Job) -> Refuse:
        """Raises for the first refused items, where nothing would be kept of the others."""

        def refuse(_: Mapping[int, str]) -> None:
            if not job.store.writes:
                raise self._refused_error(job)

        return refuse

    def _refused_error(self, job: Job) -> RefusedTextsError:
        refused = job.with_duplicates(job.refused)
        return refused_error(job.request, refused, self.space if job.store.writes else None)

    def _read_again(self, job: Job, failed: Positions) -> Positions:
        """Read rows that failed once more: another process may have mended them since.

        Args:
            job: The call.
            failed: `(m,) int64`, rows that the store has not, or not intact.

        Returns:
            The rows that fail again; they are dropped from the store, and so missing from then on.
        """
        job.refresh()
        gone = job.missing(failed)
        corrupt = job.read(np.setdiff1d(failed, gone))
        if len(corrupt):
            self._try_writing(job.store)  # says better than Lance why rows cannot be dropped
            logger.warning(
                "%d rows of %s fail their checksum (damaged on disk) and are not used. %s",
                len(corrupt),
                job.store.name if self.space is None else self.space.location,
                f"They are dropped{' and encoded again' * (self._on_miss == 'encode')}."
                if job.store.writes
                else "They are left there, because nothing is written in this run.",
            )
            job.store.drop(job.keys[corrupt])
            job.refresh()
        return np.sort(np.concatenate((gone, corrupt)))

    def _fill(
        self,
        job: Job,
        missing: Positions,
        watcher: Watcher,
        refuse: Refuse,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Encode chunk by chunk, each written while the next one is computed.

        Returns:
            How many items were encoded: fewer than are missing if another thread encoded some of
            them meanwhile, the engine refused some, or `stop` ended it.
        """
        with self._engine_lock.turn() as waited:
            if waited:  # what this thread misses, the other one may have encoded
                job.refresh()
                missing = job.missing(missing)
            return self._encode(job, missing, watcher, refuse, stop) if len(missing) else 0

    def _encode(
        self,
        job: Job,
        missing: Positions,
        watcher: Watcher,
        refuse: Refuse,
        stop: Callable[[], bool],
    ) -> int:
        if self._upstream is not None:
            self._upstream.try_writing()
        self._start_engine(job, watcher)
        self._tell_of_refusal(job, len(missing))
        self.chunker.width = job.snapshot.dim or self.chunker.width
        encoded = 0

        def leave_out(refused: Mapping[int, str]) -> None:
            job.refused.update(refused)
            refuse(refused)

        embedder = Embedder(
            self._engine,
            job.request,
            self._limit,
            restart=lambda: self._start_engine(job, watcher),
            refuse=leave_out,
            stop=stop,
            spare=lambda: self._checked.spare_prompts(job.request),
        )
        pending: Future[int] | None = None
        with ThreadPoolExecutor(1, "embcache-writer") as writer:
            try:
                for chunk in self.chunker.cut(job.request, missing, leave_out):
                    if stop():
                        break
                    for part in embedder.parts(chunk):
                        if pending is not None:
                            watcher.committed(pending.result())
                            self._tell_of_refusal(job, len(missing))
                        pending = writer.submit(self._keep, job, part.rows, part.embedded)
                        encoded += len(part.rows)
                        self.chunker.width = part.embedded.vectors.shape[1]
                        n_tokens = part.embedded.n_tokens
                        tokens = 0 if n_tokens is None else int(n_tokens.sum())
                        watcher.encoded(len(part.rows), tokens)
            finally:
                # On an error or Ctrl-C too: the last chunk is computed, so it is committed.
                if pending is not None:
                    watcher.committed(pending.result())
                    self._tell_of_refusal(job, len(missing))
        return encoded

    def _keep(self, job: Job, rows: Positions, embedded: Embedded) -> int:
        kept = job.keep(rows, embedded)
        self._checked.kept(job)
        if self._upstream is not None:
            self._upstream.collect(job, rows, embedded)
        return kept

    def _try_writing(self, store: Overlay) -> None:
        """Try a commit out, before anything is computed for it; until one goes through.

        Not at the opening: a run in which everything is cached needs no commit.
        """
        if self.space is not None and store.writes and not self._tried:
            try:
                self.space.location.try_committing()
                self._tried = True
            except CacheWriteError as error:
                store.refuse(error)

    def _tell_of_refusal(self, job: Job, missing: int) -> None:
        """Warn that what is encoded is not kept: once a call, and once until writing works again.

        Args:
            job: The call.
            missing: How many items it encodes, beside those that were found upstream.
        """
        error = job.store.refusal
        if error is not None and not job.told:
            log = logger.info if self._told else logger.warning
            missing += job.upstream  # which are among those that were written
            log("%s", unwritten_message(job.request, missing, job.store.written, self.space, error))
            job.told = self._told = True
            self._tried = False  # the next call tries again

    def _start_engine(self, job: Job, watcher: Watcher) -> None:
        """Start the engine, and see that it is the one that filled the space."""
        self._try_writing(job.store)
        self._checked.start(job, watcher)
