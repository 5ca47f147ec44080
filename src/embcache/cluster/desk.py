"""The desk of a job: an actor on the driver's node that replicas report to, and ask.

No vector comes here. What does: keys (16 bytes a text that is missing), the names of files that
are written and not yet committed, counts, complaints, and the texts of sources that only the driver
can read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embcache.cluster.claims import Claims
from embcache.cluster.reports import Done, Failure, Replica, Report, State, Written
from embcache.identity.keys import Keys
from embcache.warm.batches import BadRow, TextBatch

ALIVE_SECONDS = 30.0
"""How long a replica that says nothing counts as alive: it says something every few seconds."""

FRUITLESS_STARTS = 6
"""How often in a row a replica may be started and end without having written or finished anything.
Ray starts it again for ever, and gives it the same block: one whose texts crash it, say."""

FRUITLESS_READS = 6
"""The same of a part of a source: how often its reader may end in the midst of it."""

DEALT_WITH = TextBatch([], "")
"""Stands for a batch that is not kept any more, because its block is finished."""


@dataclass
class _Inbox:
    """What the driver has not fetched yet."""

    written: list[Written] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Desk:
    """Keeps what the replicas of one job must agree about; its methods run one at a time.

    Args:
        held: How many batches of the driver's texts are kept at most. A batch is kept until its
            block is finished: whoever reads may die, and read again.
    """

    def __init__(self, held: int = 8) -> None:
        self._claims = Claims()
        self._numbers: dict[int, int] = {}
        self._replicas: dict[str, Replica] = {}
        self._reading: Counter[int] = Counter()
        self._version: tuple[str, str] | None = None
        self._open: dict[int, Done] = {}
        self._finished: set[int] = set()
        self._total: Counter[str] = Counter()
        self._encoded = 0
        self._inbox = _Inbox()
        self._failure: Failure | None = None
        self._stopped = False
        self._feed: dict[int, TextBatch] = {}
        self._fed = 0
        self._end: int | None = None
        self._held = held
        self._changed = asyncio.Condition()

    async def hello(self, actor: str, host: str, pid: int) -> int:
        """Take in a replica, when it starts, and starts again.

        Args:
            actor: Id of its actor, which stays if it is restarted.
            host: Name of its host.
            pid: Its process.

        Returns:
            Its slot: its number among the replicas of its host.
        """
        known = self._replicas.get(actor)
        if known is None or known.host != host:
            taken = {one.slot for one in self._replicas.values() if one.host == host}
            slot = next(number for number in range(len(taken) + 1) if number not in taken)
            earlier = known or Replica(host, pid, slot)
            known = self._replicas[actor] = Replica(
                host, pid, slot, earlier.encoded, earlier.blocks, earlier.starts, earlier.fruitless
            )
        known.pid, known.starts, known.block = pid, known.starts + 1, None
        known.seen = time.monotonic()
        known.fruitless += 1
        if known.fruitless > FRUITLESS_STARTS:
            await self.fail(
                "ClusterError",
                f"On host {host}, a replica was killed or crashed {FRUITLESS_STARTS} times in a "
                "row before it had written anything: its host may be short of memory, or a text "
                "may crash the engine. Ray's logs there (/tmp/ray/session_latest/logs) may say "
                "why. Give fewer replicas, or find the text with a local run; the same command "
                "goes on from what is committed.",
            )
        return known.slot

    async def other_version(self, host: str, version: str) -> str | None:
        """Compare a replica's engine with those of the others.

        Args:
            host: Name of its host.
            version: Package and version of the engine.

        Returns:
            What another host has; None where it is the same.
        """
        first_host, first = self._version = self._version or (host, version)
        return None if first == version else f"{first_host} has {first}"

    async def beat(self, actor: str) -> bool:
        """Note that a replica is alive.

        Returns:
            Whether it is to stop.
        """
        self._replicas[actor].seen = time.monotonic()
        return self._stopped

    async def claim(self, block: int, keys: Keys) -> npt.NDArray[np.bool_]:
        """Claim keys for a block, see `Claims.claim`."""
        number = self._numbers.setdefault(block, len(self._numbers))
        return self._claims.claim(number, keys)

    async def report(self, actor: str, report: Report) -> bool:
        """Take what a replica says of its block.

        Args:
            actor: Id of its actor.
            report: What it says.

        Returns:
            Whether it is to stop after its chunk.
        """
        replica = self._replicas[actor]
        replica.started |= bool(report.done.texts) or (replica.starting and not report.starting)
        replica.seen, replica.starting = time.monotonic(), report.starting
        replica.block = None if report.last else report.block
        self._inbox.messages += report.messages
        if report.written or report.last:
            replica.fruitless = 0
        for one in report.written:
            self._claims.done(one.keys)
            replica.encoded += len(one.keys)
            self._encoded += len(one.keys)
        self._inbox.written += report.written
        if report.block not in self._finished:  # else its answer was lost, and it ran again
            self._open[report.block] = report.done
            if report.last and not self._stopped:
                replica.blocks += 1
                replica.encoded = max(0, replica.encoded - report.done.upstream)
                await self._finish(report)
        return self._stopped

    async def _finish(self, report: Report) -> None:
        self._finished.add(report.block)
        self._total.update(vars(self._open.pop(report.block)))
        self._inbox.bad += report.bad
        async with self._changed:
            self._feed.pop(report.block, None)
            self._changed.notify_all()

    async def begin_reading(self, part: int, name: str) -> None:
        """Note that a part of the sources is read; again, where its reader has died.

        Args:
            part: Its number.
            name: What its file is called in messages.
        """
        self._reading[part] += 1
        if self._reading[part] > FRUITLESS_READS:
            await self.fail(
                "ClusterError",
                f"{name}: the process that reads it has died {FRUITLESS_READS} times in a row. The "
                "file may be damaged so that it ends whoever reads it, or the host is short of "
                "memory: try this file alone, in a local run.",
            )

    async def end_reading(self, part: int) -> None:
        """Note that a part of the sources was read to its end."""
        del self._reading[part]

    async def fail(self, kind: str, message: str) -> None:
        """Note why the job cannot go on; what is said first counts."""
        self._failure = self._failure or Failure(kind, message)

    async def stop(self) -> None:
        """Have replicas stop after the chunk that they work on."""
        self._stopped = True
        async with self._changed:
            self._changed.notify_all()

    async def state(self) -> State:
        """What was done so far, and what is new since the last call."""
        total = Counter(self._total)
        for one in self._open.values():
            total.update(vars(one))
        inbox, self._inbox = self._inbox, _Inbox()
        limit = time.monotonic() - ALIVE_SECONDS
        alive = [one for one in self._replicas.values() if one.seen > limit]
        return State(
            Done(**total),
            self._encoded,
            inbox.written,
            inbox.bad,
            inbox.messages,
            dict(self._replicas),
            len(alive),
            sum(one.block is not None for one in alive),
            self._failure,
        )

    async def put(self, batch: TextBatch, first_block: int) -> bool:
        """Take the next batch of the driver's texts; waits for room.

        Args:
            batch: The batch.
            first_block: Number of the first of these batches' blocks; the others follow it.

        Returns:
            Whether further ones are wanted.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._feed) < self._held or self._stopped)
            self._feed[first_block + self._fed] = batch
            self._fed += 1
            self._changed.notify_all()
        return not self._stopped

    async def end(self, first_block: int) -> None:
        """Note that there are no further texts of the driver's."""
        async with self._changed:
            self._end = first_block + self._fed
            self._changed.notify_all()

    async def get(self, block: int) -> TextBatch | None:
        """Give out a batch of the driver's texts; waits for it.

        Args:
            block: The block's number.

        Returns:
            The batch, or `DEALT_WITH`; None behind the last one, and when the job is to stop.
        """

        def known() -> bool:
            return block in self._feed or block in self._finished or self._over(block)

        async with self._changed:
            await self._changed.wait_for(known)
            if self._over(block):
                return None
            return self._feed.get(block, DEALT_WITH)

    def _over(self, block: int) -> bool:
        return self._stopped or (self._end is not None and block >= self._end)
