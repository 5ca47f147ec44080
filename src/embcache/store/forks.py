"""What a fork leaves of Lance, and of locks that another thread held.

`fork` copies memory and one thread; the threads of Lance's runtime are not in the copy. Measured
with Lance 14, in forks of a process that had used a cache: of 12 that wrote, 8 to 12 died of
SIGSEGV or hung; of 24 that only read, 1. LanceDB mends its own runtime in the copy; pylance, which
reads, has nothing of the kind, and warns of it. So the cache refuses to be used there, in words. A
fork before the first use is sound, and so is one that leaves the cache alone, as a DataLoader's
workers do. Locks are new in the copy: else it would wait, without a word, for a thread that is not
there.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from embcache.errors import ForkedProcessError, NotCopiedError


class ForkLock:
    """A `threading.RLock`; in a forked process a new one, unless the forking thread holds it."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._renew()
        _every.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Lock it; see `threading.RLock`.

        Args:
            blocking: Whether to wait for another thread.

        Returns:
            Whether it is locked now.
        """
        if not self._lock.acquire(blocking):
            return False
        self._owner = threading.get_ident()
        self._depth += 1
        return True

    def release(self) -> None:
        """Unlock it once."""
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._lock.release()

    def __enter__(self) -> ForkLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Hold it; what is given is whether another thread was waited for."""
        waited = not self.acquire(blocking=False)
        if waited:
            self.acquire()
        try:
            yield waited
        finally:
            self.release()

    def __reduce__(self) -> NoReturn:
        """Say what `pickle` and `copy.deepcopy` of a handle or an encoder may not do."""
        raise NotCopiedError(
            "What uses a cache cannot be pickled or copied: it holds locks, open files and perhaps "
            "an engine. Hand its arguments (the model, cache_path=...) to the other process, and "
            "make the encoder there."
        )

    def after_fork(self) -> None:
        """Be unlocked, in the new process, if a thread held it that is not there."""
        if self._owner != threading.get_ident():  # a thread that forks keeps its number
            self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._owner = None
        self._depth = 0


@contextmanager
def in_use() -> Iterator[None]:
    """Around every use of Lance.

    Raises:
        ForkedProcessError: This process is a fork of one that has used Lance before.
    """
    process = os.getpid()
    if _users and process not in _users:
        raise ForkedProcessError(
            f"The cache was used in process {min(_users)}, and this one ({process}) is a fork: "
            "Lance crashes or hangs in forks. Use multiprocessing's 'spawn' or 'forkserver' (for a "
            "DataLoader, multiprocessing_context='spawn') and make the encoder in the new process; "
            "or fork before the cache is first used."
        )
    _users.add(process)
    yield


_every: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_users: set[int] = set()  # this process once it has used Lance; in a fork, the one that had


def _after_fork() -> None:
    for lock in list(_every):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
