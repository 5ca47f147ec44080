"""What a process is seen to take, time and memory, and a new one for each that is looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Seconds(NamedTuple):
    """How long something took.

    Attributes:
        wall: By the clock, waiting included: for the disk, and for others on the same cores.
        cpu: What all threads of the process computed. What has one thread takes so long by the
            clock on a machine of its own.
    """

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Seconds:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, began: Seconds) -> Seconds:
        """What has passed since an earlier `now`."""
        now = cls.now()
        return cls(now.wall - began.wall, now.cpu - began.cpu)

    def plus(self, more: Seconds) -> Seconds:
        """The sum of both."""
        return Seconds(self.wall + more.wall, self.cpu + more.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.3f} ({self.cpu:.3f})" if self.wall else ""


NOTHING = Seconds()


@dataclass(frozen=True)
class Memory:
    """Memory of this process, in bytes.

    Attributes:
        own: What belongs to it alone.
        mapped: Pages of files, which all processes of the host share.
        peak: The most that both were together, since `Memory.begin`.
    """

    own: int
    mapped: int
    peak: int

    @classmethod
    def now(cls) -> Memory:
        """As the system has it."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return cls(
            *(int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM"))
        )

    @classmethod
    def begin(cls) -> Memory:
        """As it is now, from which on the peak counts."""
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return cls.now()

    def since(self, before: Memory) -> Memory:
        """What came on top of an earlier state: of the peak, on top of all memory then."""
        used = before.own + before.mapped
        return Memory(self.own - before.own, self.mapped - before.mapped, self.peak - used)


def in_a_process(do: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What a function returns that is called in a new process.

    Args:
        do: A function of a module.
        given: Its arguments.
        named: Its arguments by name.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(do, *given, **named).result()


def forget(path: Path) -> None:
    """Have the system drop a file's pages: the next to read it reads the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
