"""What Lance's native code prints when it panics: into the debug log, not onto the screen.

Rust prints a panic to file descriptor 2 before Python hears of it, with a backtrace where
RUST_BACKTRACE is set, and has no way to be told otherwise from outside. So descriptor 2 leads into
memory while a table is opened and its keys are read, which is where nearly all panics over damaged
files are, and while tools read rows; what others print meanwhile is printed afterwards. Not while
an encoder reads vectors: that goes on for long, and a process that is started meanwhile, a vLLM
engine, would take the descriptor along and print its errors to nobody. Filtering everything
through a pipe for good would stand between the user and every other library.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STDERR = 2
_PANIC = re.compile(rb"^\n?thread '.*' (\(\d+\) )?panicked at ", re.MULTILINE)


class _Capture:
    """Descriptor 2, led elsewhere while anyone wants that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._screen = self._memory = -1
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release)
        os.register_at_fork(after_in_child=self._in_child)

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._begin()

    def leave(self) -> None:
        with self._lock:
            self._users = max(0, self._users - 1)  # after a fork, none
            if self._users == 0:
                self._end()

    def _begin(self) -> None:
        try:
            self._screen = os.dup(_STDERR)
            self._memory = os.memfd_create("embcache-stderr")
            os.dup2(self._memory, _STDERR)
        except OSError:  # no standard error, or no descriptor left: then it is as it is
            self._close()

    def _end(self) -> None:
        if self._memory < 0:
            return
        os.dup2(self._screen, _STDERR)
        os.lseek(self._memory, 0, os.SEEK_SET)
        with open(self._memory, "rb", closefd=False) as memory:
            said = memory.read()
        panic = _PANIC.search(said)
        others = said[: panic.start()] if panic else said
        if others:
            os.write(self._screen, others)
        if panic:
            logger.debug("Lance panicked: %s", said[panic.start() :].decode(errors="replace"))
        self._close()

    def _close(self) -> None:
        for handle in (self._screen, self._memory):
            if handle >= 0:
                os.close(handle)
        self._screen = self._memory = -1

    def _in_child(self) -> None:
        """A forked process has only the thread that forked: nobody else is within a block."""
        if self._memory >= 0:
            os.dup2(self._screen, _STDERR)
            self._close()
        self._users = 0
        self._lock.release()


_capture = _Capture()


@contextmanager
def off_screen() -> Iterator[None]:
    """Keep the text of panics within this block off the screen. Short blocks only."""
    _capture.enter()
    try:
        yield
    finally:
        _capture.leave()


def each_off_screen(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made off screen; what is done with them is not."""
    while True:
        with off_screen():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
