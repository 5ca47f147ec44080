"""Work that may hang, done in a thread of its own: it is waited for as long as it gets on.

A file server that is down stops whoever asks it, inside the kernel or inside native code, where no
exception reaches. So the asking thread is left behind. It is a daemon, which keeps no process from
exiting; but a daemon that comes back from native code while Python shuts down may abort the
process, so an exit waits for a moment first.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")
Beat = Callable[[], None]
"""Called by the work whenever it has got on a little; it ends work that nobody waits for."""

AT_EXIT_SECONDS = 3.0
"""How long an exit waits for work that was given up, all together."""


class HangingError(Exception):
    """Work did not get on for too long, and was given up."""


class _AbandonedError(Exception):
    """Nobody waits for this work any more."""


class _Run(Generic[T]):
    """One piece of work, and when it last got on."""

    def __init__(self, work: Callable[[Beat], T]) -> None:
        self.future: Future[T] = Future()
        self.last = time.monotonic()
        self.abandoned = False
        self._work = work

    def beat(self) -> None:
        if self.abandoned:
            raise _AbandonedError
        self.last = time.monotonic()

    def run(self) -> None:
        try:
            self.future.set_result(self._work(self.beat))
        except BaseException as error:  # raised again by who waits
            self.future.set_exception(error)


def patiently(work: Callable[[Beat], T], seconds: float) -> T:
    """Do something in another thread, and wait for it as long as it gets on.

    Args:
        work: What is to be done; it gets a `Beat`.
        seconds: How long it may take from one beat to the next.

    Returns:
        What the work returns.

    Raises:
        HangingError: It did not get on for so long. Its thread is left behind, and ends at its
            next beat.
        BaseException: Whatever the work raises.
    """
    run = _Run(work)
    thread = threading.Thread(target=run.run, name="embcache-upstream", daemon=True)
    _threads.add(thread)
    thread.start()
    try:
        while not run.future.done():
            left = run.last + seconds - time.monotonic()
            if left <= 0:
                raise HangingError(f"it did not get on for {seconds:g} seconds")
            wait([run.future], left)
    finally:
        run.abandoned = True
    return run.future.result()


_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _wait_at_exit() -> None:
    until = time.monotonic() + AT_EXIT_SECONDS
    for thread in list(_threads):
        thread.join(max(0.0, until - time.monotonic()))


atexit.register(_wait_at_exit)
