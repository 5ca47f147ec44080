"""A replica: the actor with one engine, which deals with blocks of texts as a local run would."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.cluster.blocks import Block, unpacked
from embcache.cluster.host import end_children_with, pin
from embcache.cluster.reading import told
from embcache.cluster.reports import Done, Report, Written
from embcache.errors import ChangedModelError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.pipeline.chunks import CHUNK_SECONDS
from embcache.warm.batches import BadRow
from embcache.warm.malloc import limit_arenas
from embcache.warm.run import Warmer, WarmStats

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

_BEAT_SECONDS = 3.0
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Orders:
    """What all replicas of a job are told.

    Attributes:
        desk: The job's desk.
        recipe: Reference to what makes the encoder: to fetch it imports torch, which reads the
            number of threads once.
        identity: Which its identity must be.
        on_a_host: How many replicas one host has at most.
        pinned: Whether each of these gets its share of the host's cores for itself: where the
            engine computes on the CPU.
    """

    desk: Any
    recipe: Any
    identity: Identity
    on_a_host: int
    pinned: bool


class Replica:
    """Warms the cache with blocks of texts, by the same code as a local run.

    What is different: rows are written to files and committed by the driver, and of the keys that
    are missing, those that another block has claimed are left to it.

    Args:
        orders: What to do.

    Raises:
        ChangedModelError: Model, engine or arguments are not those of the driver, or of the other
            replicas.
        EmbcacheError: The encoder cannot be made here.
    """

    def __init__(self, orders: Orders) -> None:
        import ray

        self._get = ray.get
        self._desk = orders.desk
        self._actor = ray.get_runtime_context().get_actor_id()
        self._host = socket.gethostname()
        self._block = Block(-1, None)
        self._before = WarmStats()
        self._bad: list[BadRow] = []
        self._staged: list[Written] = []
        self._ready: list[Written] = []
        self._committed = 0
        self._messages: list[str] = []
        self._reported = 0.0
        with self._told():
            limit_arenas()
            self._watch = end_children_with(os.getpid())
            logging.getLogger("embcache").addHandler(_Forwarded(self._messages))
            self._warmer = self._opened(orders)
        threading.Thread(target=self._beat, name="embcache-beat", daemon=True).start()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Deal with the blocks of a table.

        Args:
            table: As `blocks.packed` makes it.

        Returns:
            A table with the blocks' numbers: that they are dealt with is all that Ray learns.
        """
        blocks = unpacked(table)
        with self._told():
            for block in blocks:
                self._deal_with(block)
        return pa.table({"block": [block.number for block in blocks]})

    def _opened(self, orders: Orders) -> Warmer:
        slot = self._get(self._desk.hello.remote(self._actor, self._host, os.getpid()))
        if orders.pinned:
            pin(slot, orders.on_a_host)
        recipe: Callable[[], VllmEncoderWrapper] = self._get(orders.recipe)
        encoder = recipe()
        if encoder.identity != orders.identity:
            raise ChangedModelError(
                f"the model is not the one that the driver has: {_differing(encoder, orders)}. "
                "Give all hosts the same files and versions."
            )
        other = self._get(self._desk.other_version.remote(self._host, encoder.engine_version))
        if other is not None:
            raise ChangedModelError(
                f"the engine is {encoder.engine_version}, and {other}. Install the same version on "
                "all hosts."
            )
        pipeline = encoder.open_pipeline()
        pipeline.chunker.seconds = CHUNK_SECONDS  # wherever it goes: to write a file is no commit
        space = pipeline.space
        assert space is not None
        space.stage(lambda file, keys: self._staged.append(Written(file, keys)))
        return Warmer(encoder, self._advance, self._bad.append, self._claim)

    def _deal_with(self, block: Block) -> None:
        self._block, self._before = block, replace(self._warmer.stats)
        self._bad[:] = block.bad
        self._report()
        if block.batch is not None:
            try:
                self._warmer.run([block.batch])
            except BaseException:
                self._report()  # what is ready
                raise
        self._ready += self._staged
        self._staged.clear()
        self._report(last=True)

    def _advance(self, stats: WarmStats) -> None:
        """Is called whenever the stats change."""
        if stats.committed != self._committed:
            # A chunk is through, canaries included, and the next one has not begun to be written.
            self._committed = stats.committed
            self._ready += self._staged
            self._staged.clear()
        recent = time.monotonic() - self._reported < _REPORT_SECONDS
        if self._ready or stats.starting or not recent:
            self._report()

    def _report(self, *, last: bool = False) -> None:
        stats, before = self._warmer.stats, self._before
        written, self._ready = self._ready, []
        said = self._messages[:]
        del self._messages[: len(said)]  # other threads log meanwhile
        done = Done(
            stats.texts - before.texts,
            stats.upstream - before.upstream,
            stats.refused - before.refused,
            stats.tokens - before.tokens,
        )
        report = Report(
            self._block.number,
            done,
            written,
            list(self._bad) if last else (),
            said,
            starting=stats.starting,
            last=last,
        )
        self._reported = time.monotonic()
        if self._get(self._desk.report.remote(self._actor, report)):
            self._warmer.stop.set()

    def _claim(self, keys: Keys) -> npt.NDArray[np.bool_]:
        mine: npt.NDArray[np.bool_] = self._get(self._desk.claim.remote(self._block.number, keys))
        return mine

    def _beat(self) -> None:
        """Say that this process lives, also while a chunk takes minutes."""
        with suppress(Exception):  # the desk is gone, and so is the job
            while True:
                if self._get(self._desk.beat.remote(self._actor)):
                    self._warmer.stop.set()
                time.sleep(_BEAT_SECONDS)

    def _told(self) -> Any:
        return told(self._desk, f"on host {self._host}: ")


class _Forwarded(logging.Handler):
    """Keeps warnings for the driver, whose terminal is the only one that is looked at.

    Args:
        messages: Where to.
    """

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages
        self._host = socket.gethostname()

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(f"on host {self._host}: {record.getMessage()}")


def _differing(encoder: VllmEncoderWrapper, orders: Orders) -> str:
    here, there = vars(encoder.identity), vars(orders.identity)
    return "; ".join(
        f"{name} {value!r}, there {there[name]!r}"
        for name, value in here.items()
        if value != there[name]
    )
