"""Warming on a Ray cluster: what a user starts, and what watches over it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from embcache.cluster.connect import connected
from embcache.cluster.job import Job, error_of
from embcache.cluster.layout import check_count
from embcache.cluster.reports import State
from embcache.errors import CacheError, ConfigError
from embcache.warm.batches import Report, TextBatch
from embcache.warm.run import WarmStats, warn

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
    from embcache.warm.parts import Part, Selected

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.3
_STOP_SECONDS = 300.0  # for the chunks in flight: of a slow CPU, or while an engine starts


@dataclass(frozen=True)
class ReplicaStats:
    """What one replica did.

    Attributes:
        host: Name of its host.
        pid: Its last process.
        encoded: Texts that it encoded, those that were lost with a kill left out.
        blocks: Blocks of texts that it finished.
        starts: How often its process was started.
    """

    host: str
    pid: int
    encoded: int
    blocks: int
    starts: int


@dataclass
class ClusterStats(WarmStats):
    """What was done so far, as of a local run, and by which replicas.

    Attributes:
        alive: How many replicas are alive.
        replicas: All that ever were.
        dashboard: URL of Ray's dashboard; None where there is none.
    """

    alive: int = 0
    replicas: list[ReplicaStats] = field(default_factory=list)
    dashboard: str | None = None


class ClusterWarmer:
    """Fills an encoder's space from streams of texts, with engines on a Ray cluster.

    Ray Data reads, schedules, tries again and holds back; each replica is a `Warmer` in an actor,
    with the encoder's engine, keys and checks. Replicas write their vectors themselves, and this
    process commits them every few seconds. What is committed stays, whatever dies; going on
    costs reading and hashing only.

    Args:
        encoder: The encoder whose space is filled; every node must see its cache and its model.
        replicas: How many engines. "auto" is one for each `tensor_parallel_size` GPUs of the
            cluster; where the engine computes on CPUs, one for each node.
        address: `host:port` of a cluster, or "auto" for the one that runs on this machine. None
            for what RAY_ADDRESS names, or else for a Ray of this process's own.
        advance: Called with the stats whenever they change, in the thread that runs.
        report: Called with each row that is left out, in the thread that runs; it may raise, to
            end the run.

    Attributes:
        stop: Set it, from any thread or a signal handler, to end after the chunks in flight; what
            is encoded by then is committed.
        stats: What was done so far.

    Raises:
        CacheError: The encoder has no cache that it may write.
        ConfigError: It writes upstream, too; or `replicas` is no count.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        replicas: int | Literal["auto"] = "auto",
        address: str | None = None,
        advance: Callable[[ClusterStats], None] = lambda stats: None,
        report: Report = warn,
    ) -> None:
        _check(encoder)
        check_count(replicas)
        self._encoder = encoder
        self._replicas = replicas
        self._address = address
        self._advance = advance
        self._report = report
        self._began = 0.0
        self.stop = threading.Event()
        self.stats = ClusterStats()

    def run(
        self,
        parts: Sequence[Part | Selected] = (),
        batches: Iterable[TextBatch] | None = None,
        total: int | None = None,
    ) -> ClusterStats:
        """Encode and commit whatever of the texts is missing.

        Args:
            parts: What is read on the cluster. Files of this machine are read on it; those of a
                URL wherever there is room.
            batches: What only this process can read: tasks of mteb, data sets, pipes; None for
                nothing.
            total: How many texts there are, about, for the size of blocks; None if that is not
                known.

        Returns:
            What was done.

        Raises:
            ConfigError: Ray is not installed; or an argument has a value that cannot work.
            ClusterError: The cluster is out of reach, has no room, or its nodes are not alike; or
                Ray ends the job.
            CacheError: The cache cannot be read or written.
            InputError: A source cannot be read.
            ChangedModelError: A replica's model, engine or canaries are not those of the others.
            EngineError: An engine does not start, fails, or returns NaN or infinity.
        """
        self._began = time.perf_counter()
        self.stats = ClusterStats()
        if not parts and batches is None:
            return self.stats
        with connected(self._address, self._replicas) as dashboard:
            self.stats.dashboard, self.stats.starting = dashboard, True
            self._advance(self.stats)
            job = Job(self._encoder, self._replicas, parts, batches, total)
            try:
                self._watch(job)
                self._finish(job)
            finally:
                job.close()
        self.stats.stopped = self.stop.is_set()
        return replace(self.stats)

    def _watch(self, job: Job) -> None:
        """Until the job is through: commit, show, report, and look for what went wrong."""
        until = float("inf")
        try:
            while True:
                over = job.over
                state = job.state()
                self._take(job, state)
                if state.failure is not None:
                    raise error_of(state.failure.kind, state.failure.message)
                job.committer.commit()
                if over:
                    job.raise_error()
                    return
                if self.stop.is_set() and until == float("inf"):
                    job.stop()
                    until = time.monotonic() + _STOP_SECONDS
                elif self.stop.is_set() and (not state.busy or time.monotonic() > until):
                    return
                time.sleep(_POLL_SECONDS)
        finally:  # whatever ends it: what is written is good, and is committed
            if (last := job.last_words()) is not None:
                job.committer.take(last.written)
                _log(last.messages)
            job.committer.commit(now=True)
            self._count_committed(job)

    def _finish(self, job: Job) -> None:
        self._take(job, job.state())
        job.committer.close()

    def _take(self, job: Job, state: State) -> None:
        """Deal with what the desk knows."""
        job.committer.take(state.written)
        self._show(job, state)
        _log(state.messages)
        for row in state.bad:
            self._report(row)

    def _count_committed(self, job: Job) -> None:
        # Of what is committed, only those that were encoded, as in a local run.
        self.stats.committed = max(0, job.committer.committed - self.stats.upstream)

    def _show(self, job: Job, state: State) -> None:
        stats, done = self.stats, state.done
        stats.upstream, stats.refused, stats.tokens = done.upstream, done.refused, done.tokens
        # What a replica has written before it was killed is a hit when its block is tried again.
        stats.encoded = max(0, state.encoded - done.upstream)
        stats.texts = max(done.texts, stats.encoded)
        stats.hits = stats.texts - stats.encoded
        self._count_committed(job)
        stats.seconds = time.perf_counter() - self._began
        stats.starting = not any(one.started for one in state.replicas.values())
        if stats.starting:
            stats.start_seconds = stats.seconds
        stats.alive = state.alive
        stats.replicas = [
            ReplicaStats(one.host, one.pid, one.encoded, one.blocks, one.starts)
            for one in state.replicas.values()
        ]
        self._advance(stats)


def _log(messages: Iterable[str]) -> None:
    for message in messages:
        logger.warning("%s", message)


def _check(encoder: VllmEncoderWrapper) -> None:
    given = encoder.recipe().keywords
    read_only = given.get("read_only") or given.get("on_miss", "encode") != "encode"
    if given.get("cache_path", "cache") is None or read_only:
        raise CacheError("There is no cache to fill: give a cache_path that can be written.")
    if given.get("upstream_write"):
        raise ConfigError(
            "upstream_write=True: on a cluster only the cache itself is written. Leave it out, and "
            "use `transfer` afterwards."
        )
