"""Threads that work side by side, and keep no process from exiting.

`ThreadPoolExecutor` has an exit wait for its threads, however long. A file server that is down
stops a thread inside the kernel, for good where it is mounted `hard`. Who waits for such a cache
gives it up one day (an upstream is left alone, say); its process must be able to end, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool(Executor):
    """A `ThreadPoolExecutor` whose threads are daemons; the end of a `with` waits for its work.

    Args:
        threads: How many there are at most.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._threads: list[threading.Thread] = []
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have something done; see `Executor.submit`."""
        future: Future[T] = Future()
        self._waiting.put(lambda: _settle(future, lambda: fn(*args, **kwargs)))
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when all is done; see `Executor.shutdown`. Nothing is cancelled."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads if wait else []:
            thread.join()

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    """Do something, unless nobody wants it any more, and tell the future what came of it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # raised again by who waits
        future.set_exception(error)
