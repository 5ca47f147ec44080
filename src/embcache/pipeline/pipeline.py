"""keys -> dedupe -> lookup -> encode misses -> write back -> assemble in the caller's order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np

from embcache.engine.base import Embedded, Engine
from embcache.errors import CacheError, ConfigError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.pipeline.chunks import Chunk, Chunker
from embcache.pipeline.request import Request, missing_error, non_finite_error
from embcache.pipeline.result import Matrix, RowNumbers, Truncation, Vectors
from embcache.pipeline.stats import Bar, EncodeStats, Watcher
from embcache.store import Rows, Space
from embcache.store.index import unique_keys

logger = logging.getLogger(__name__)

OnMiss = Literal["encode", "raise"]

_READ_ATTEMPTS = 3


class Pipeline:
    """Serves a request's items from a space and sends only what is missing to the engine.

    An item is a text, or a pair of texts; its value a vector, or a score, which is a vector of one
    component here.

    Args:
        engine: Computes values; started at the first miss.
        identity: Identity of the values, with a settled dtype.
        space: Where they are kept; None for no cache.
        on_miss: `"raise"` never starts the engine.
        write: Whether results are written back.
        check_engine: Called when the engine has started, before its first value is used.
        narrow: Cuts vectors on their way to the caller; the space holds the full ones.
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
        narrow: Truncation | None = None,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._space = space
        self._on_miss = on_miss
        self._write = write and space is not None
        self._check_engine = check_engine
        self._narrow = narrow
        self._warned = False
        self.chunker = Chunker(engine)

    def encode(self, request: Request) -> tuple[Vectors, EncodeStats]:
        """Values of all items.

        Returns:
            `(n, dim) float32`, row i = item i, and what it took. For no items `dim` is that of
            the space, or 0 where it has no rows yet.

        Raises:
            InputError: A text is none, or the tokenizer refuses it; names the row.
            MissingTextsError: Texts are missing and `on_miss="raise"`.
            CacheError: The space cannot be read or written.
            EngineError: The engine does not start, fails, or returns NaN or infinity.
        """
        with ThreadPoolExecutor(1, "embcache-opener") as opener:  # while the keys are computed
            opened = None if self._space is None else opener.submit(self._space.refresh)
            keys = request.keys(self._identity.to_bytes())
            first, source = unique_keys(keys)
        if opened is not None:
            opened.result()
        matrix = Matrix(len(keys), self._narrow)
        missing = self._read_hits_patiently(keys, first, matrix)
        hits = len(first) - len(missing)
        with Bar(len(first), hits, request.unit, request.verb, shown=request.show_progress) as bar:
            if len(missing):
                if self._on_miss == "raise":
                    raise missing_error(request, missing, self._space)
                self._encode_missing(request, keys, missing, matrix, bar)
        copies = np.flatnonzero(source != np.arange(len(source)))
        if len(copies):
            matrix.rows[copies] = matrix.rows[source[copies]]
        seconds = time.perf_counter() - request.began
        stats = EncodeStats(len(keys), len(first), hits, len(missing), seconds, request.unit)
        where = "no cache" if self._space is None else self._space.name
        logger.info("%s (task %s, %s, %s)", stats, request.task, request.prompts, where)
        return matrix.rows, stats

    def refresh(self) -> None:
        """See what other processes have committed to the space; `fill` does not look by itself."""
        if self._space is not None:
            self._space.refresh()

    @property
    def identity(self) -> Identity:
        """Of what is encoded, with a settled dtype."""
        return self._identity

    @property
    def space(self) -> Space | None:
        """Where it is kept."""
        return self._space

    def fill(
        self,
        request: Request,
        keys: Keys,
        *,
        watcher: Watcher,
        stop: Callable[[], bool] = lambda: False,
    ) -> EncodeStats:
        """Write what is missing to the space, and nothing else: no vector is read or returned.

        Args:
            request: The items.
            keys: Their keys, `request.keys(...)`, which the caller may have computed meanwhile.
            watcher: Told of the engine's start and of each chunk.
            stop: Asked before each chunk; what was encoded until then is committed.

        Returns:
            What was done; `encoded` is less than `unique - hits` where `stop` said so.

        Raises:
            CacheError: There is no space, or it cannot be written.
            InputError: As `encode`; EngineError too.
        """
        space = self._space
        if space is None or not self._write:
            raise CacheError("There is no cache to fill: give a cache_path that can be written.")
        first, _ = unique_keys(keys)
        missing = first[space.find(keys[first]) < 0]
        encoded = 0
        if len(missing) and not stop():
            encoded = self._encode_missing(request, keys, missing, None, watcher, stop)
        seconds = time.perf_counter() - request.began
        hits = len(first) - len(missing)
        return EncodeStats(len(keys), len(first), hits, encoded, seconds, request.unit)

    def _read_hits_patiently(self, keys: Keys, first: RowNumbers, matrix: Matrix) -> RowNumbers:
        """As `_read_hits`; again where another process moved the rows between look-up and read.

        A compaction may remove the files of the version that was looked up in. The error tells no
        difference to damage; a newer version of the table does.
        """
        for _ in range(_READ_ATTEMPTS):
            version = None if self._space is None else self._space.version
            try:
                return self._read_hits(keys, first, matrix)
            except CacheError:
                self.refresh()
                if self._space is None or self._space.version == version:
                    raise
                logger.info("%s was compacted meanwhile; reading again", self._space.path)
        return self._read_hits(keys, first, matrix)

    def _read_hits(self, keys: Keys, first: RowNumbers, matrix: Matrix) -> RowNumbers:
        """Fill in what the space has; the rows that it has not, or not intact, are returned."""
        if self._space is None:
            return first
        if self._space.dim is not None:
            matrix.allocate(self._space.dim)
        positions = self._space.find(keys[first])
        found = positions >= 0
        hits = first[found]
        failed = hits[
            self._space.read(positions[found], keys[hits], matrix.rows, hits, self._narrow)
        ]
        if len(failed):
            failed = self._read_again(self._space, failed, keys, matrix)
        return np.sort(np.concatenate((first[~found], failed)))

    def _read_again(
        self, space: Space, failed: RowNumbers, keys: Keys, matrix: Matrix
    ) -> RowNumbers:
        """Another process may have mended them since; what still fails is dropped."""
        space.refresh()
        positions = space.find(keys[failed])
        there = positions >= 0
        hits = failed[there]
        corrupt = hits[space.read(positions[there], keys[hits], matrix.rows, hits, self._narrow)]
        if len(corrupt):
            self._report_corrupt(corrupt, keys)
        return np.concatenate((failed[~there], corrupt))

    def _report_corrupt(self, corrupt: RowNumbers, keys: Keys) -> None:
        assert self._space is not None
        logger.warning(
            "%d rows of %s fail their checksum (damaged on disk) and are not used. %s",
            len(corrupt),
            self._space.path,
            "They are dropped and encoded again."
            if self._write
            else "They are left there, because nothing is written in this run.",
        )
        if self._write:
            self._space.delete(keys[corrupt])
            self._space.refresh()

    def _start_engine(self, watcher: Watcher) -> None:
        if not self._engine.started:
            watcher.starting()
            self._engine.start()
            watcher.started()
        self._check_engine()
        self._warn_of_another_version()

    def _encode_missing(
        self,
        request: Request,
        keys: Keys,
        missing: RowNumbers,
        matrix: Matrix | None,
        watcher: Watcher,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Encode chunk by chunk; each is written while the next one is computed."""
        self._start_engine(watcher)
        encoded = 0
        pending: Future[int] | None = None
        with ThreadPoolExecutor(1, "embcache-writer") as writer:
            try:
                for chunk in self.chunker.cut(request, missing):
                    if stop():
                        break
                    embedded = self._embed(request, chunk)
                    if pending is not None:
                        watcher.committed(pending.result())
                    pending = writer.submit(self._keep, request, keys, chunk.rows, embedded, matrix)
                    encoded += len(chunk.rows)
                    n_tokens = embedded.n_tokens
                    watcher.encoded(len(chunk.rows), 0 if n_tokens is None else int(n_tokens.sum()))
            finally:
                # On an error or Ctrl-C too: the last chunk is computed, so it is committed.
                if pending is not None:
                    watcher.committed(pending.result())
        return encoded

    def _warn_of_another_version(self) -> None:
        """Versions are not part of the identity: upgrading shall not empty the cache."""
        begun_with = None if self._space is None else self._space.engine_version
        if self._warned or not self._write:
            return
        self._warned = True
        if begun_with not in (None, self._engine.version):
            logger.warning(
                "%s was begun with %s; new rows come from %s. They agree closely, not bit for "
                "bit. Use another cache_path where that matters.",
                "" if self._space is None else self._space.path,
                begun_with,
                self._engine.version,
            )

    def _embed(self, request: Request, chunk: Chunk) -> Embedded:
        embedded = self._engine.embed(chunk.prompts)
        finite = np.isfinite(embedded.vectors).all(axis=1)
        if not finite.all():
            rows = chunk.rows
            raise non_finite_error(request, rows[~finite], len(rows), self._engine.dtype)
        return embedded

    def _keep(
        self,
        request: Request,
        keys: Keys,
        rows: RowNumbers,
        embedded: Embedded,
        matrix: Matrix | None,
    ) -> int:
        """Write a chunk, and hand out what a warm run would: the rows as the space has them.

        Where another process was first with a text, its row counts, here and in every later run.
        """
        if not self._write:
            assert matrix is not None  # `fill` writes
            matrix.allocate(embedded.vectors.shape[1])
            vectors = embedded.vectors
            matrix.rows[rows] = vectors if self._narrow is None else self._narrow(vectors)
            return len(rows)
        space = self._space
        assert space is not None
        space.refresh()
        new = np.flatnonzero(space.find(keys[rows]) < 0)
        if len(new):
            space.append(
                Rows(
                    keys[rows[new]],
                    embedded.vectors[new],
                    request.columns(rows[new].tolist()),
                    None if embedded.n_tokens is None else embedded.n_tokens[new],
                )
            )
            space.refresh()
        if matrix is None:
            return len(rows)
        matrix.allocate(embedded.vectors.shape[1])  # after the commit: a cut may be refused here
        found = space.find(keys[rows])
        if space.read(found, keys[rows], matrix.rows, rows, self._narrow).any():
            raise CacheError(
                f"{space.path}: rows written a moment ago fail their checksum. The disk or its "
                "memory is failing; use another cache_path."
            )
        return len(rows)


def check_on_miss(value: object) -> None:
    """Refuse what is no `OnMiss`.

    Raises:
        ConfigError: It is none.
    """
    if value not in get_args(OnMiss):
        raise ConfigError(
            f"on_miss={value!r} is unknown. Use one of {', '.join(get_args(OnMiss))}."
        )
