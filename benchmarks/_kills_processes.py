"""The processes of a trial of `cluster_kills.py`: none gets lost, and none may be left."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_EVERY = 0.2
_RAYS_OWN = (  # which a cluster keeps for the next job
    *("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_StatsActor"),
    *("ray::ActorLocationTracker", "ray::_AutoscalingCoordinatorActor"),
)
_WATCHER = (
    "import os, select, signal, sys, time"  # how the program of `embcache.cluster.host` begins
)


class Brood:
    """All processes that this one has started, and those that they have started.

    Orphans become this process's children instead of init's, so that whatever a killed process
    leaves is found; and they are reaped here at once, as init would do: Ray takes a process that
    nobody has reaped for one that lives.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._own: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def start(
        self, command: list[str], output: str, env: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process whose exit status is wanted; its output is appended to a file."""
        with self._lock, open(output, "ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
            self._own.append(process)
        return process

    def alive(self) -> list[psutil.Process]:
        """All that live."""
        return [one for one in psutil.Process().children(recursive=True) if _lives(one)]

    def others(self, than: Collection[int]) -> list[psutil.Process]:
        """Those that live and have other ids."""
        return [one for one in self.alive() if one.pid not in than]

    def at_work(self) -> list[psutil.Process]:
        """Those that work for a job: actors, tasks, and who watches over them."""
        return [one for one in self.alive() if _works(_title(one))]

    def titled(self, *beginnings: str) -> list[psutil.Process]:
        """Those whose titles begin so: `ray::Desk`, say."""
        return [one for one in self.alive() if _title(one).startswith(beginnings)]

    def end(self) -> None:
        """Kill all that live, again and again: some start others."""
        while alive := self.alive():
            for one in alive:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            time.sleep(_EVERY)

    def _reap(self) -> None:
        while True:
            time.sleep(_EVERY)
            with self._lock:
                own = {one.pid for one in self._own}
            for child in psutil.Process().children():
                if child.pid not in own and not _lives(child):
                    with suppress(ChildProcessError):  # Ray's own handle was faster
                        os.waitpid(child.pid, os.WNOHANG)


def wait_until_none(
    find: Callable[[], Iterable[psutil.Process]], seconds: float
) -> list[tuple[int, str]]:
    """Wait for processes to end.

    Args:
        find: Which.
        seconds: How long.

    Returns:
        Ids and titles of those that did not.
    """
    until = time.monotonic() + seconds
    while left := [(one.pid, _title(one)[:80]) for one in find()]:
        if time.monotonic() > until:
            return left
        time.sleep(_EVERY)
    return []


def ancestors(pid: int) -> Iterator[int]:
    """Ids of a process's parent, the parent's parent, and so on."""
    try:
        yield from (one.pid for one in psutil.Process(pid).parents())
    except psutil.NoSuchProcess:
        return


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _works(title: str) -> bool:
    return (title.startswith("ray::") and not title.startswith(_RAYS_OWN)) or _WATCHER in title
