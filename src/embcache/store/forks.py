"""What a fork leaves of locks, and of Lance, that another thread was using at that moment.

`fork` copies memory and one thread. A lock that another thread held is locked in the copy, and
nobody is left to release it: a DataLoader's worker would wait forever. And Lance's runtime, caught
in the middle of a call, crashes in the copy at the next one. Measured, beside a thread that
encodes: of 12 forks 9 hung, and with new locks 6 died of SIGSEGV. So locks are new in the copy, and
there the cache refuses to be used, in words. Where no other thread was in Lance, LanceDB and Lance
begin anew in the copy by themselves, and all goes on.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from embcache.errors import CacheError


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.release()

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
    """Around every use of Lance, so that a fork in the middle of one is noticed.

    Raises:
        CacheError: This process was forked in the middle of another thread's.
    """
    if _State.forked_in_use:
        raise CacheError(
            "This process was forked while another thread used the cache, which Lance does not "
            "survive. Start processes with multiprocessing's 'spawn' or 'forkserver' "
            "(multiprocessing_context='spawn' of a DataLoader), or before other threads encode."
        )
    me = threading.get_ident()
    _inside[me] = _inside.get(me, 0) + 1
    try:
        yield
    finally:
        _inside[me] -= 1
        if not _inside[me]:
            del _inside[me]


class _State:
    forked_in_use = False


_every: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_inside: dict[int, int] = {}  # by thread, how often it is in use; each changes its own


def _after_fork() -> None:
    me = threading.get_ident()
    if _inside.keys() - {me}:
        _State.forked_in_use = True
    for lock in list(_every):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
