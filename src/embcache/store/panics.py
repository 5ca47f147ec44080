"""What Lance's native code prints when it panics: into the debug log, not onto the screen.

Rust prints a panic to file descriptor 2 before Python hears of it, with a backtrace where
RUST_BACKTRACE is set, and has no way to be told otherwise from outside. So descriptor 2 leads into
memory while Lance opens a table or reads a batch of it; what others print meanwhile is printed
afterwards. A process that is started meanwhile, by another thread, would take the descriptor along
and print its errors to nobody: while an engine is at work, all is on the screen. Filtering
everything through a pipe for good would stand between the user and every other library.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
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
        self._idle = threading.Condition(self._lock)
        self._users = self._refused = 0
        self._screen = self._memory = -1
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release)
        os.register_at_fork(after_in_child=self._in_child)

    def enter(self) -> bool:
        """Begin, for one user more; whether there is anything to `leave`."""
        with self._lock:
            if self._refused:
                return False
            self._users += 1
            if self._users == 1:
                self._begin()
            return True

    def leave(self) -> None:
        with self._lock:
            self._users = max(0, self._users - 1)  # after a fork, none
            if self._users == 0:
                self._end()
                self._idle.notify_all()

    def refuse(self) -> None:
        """Let nobody enter, once those that have are gone."""
        with self._lock:
            self._refused += 1
            self._idle.wait_for(lambda: not self._users)

    def allow(self) -> None:
        with self._lock:
            self._refused = max(0, self._refused - 1)  # after a fork, none

    def _begin(self) -> None:
        if sys.__stderr__ is None:  # closed from the start: 2 may be anybody's, Lance's own, say
            return
        try:
            self._screen = os.dup(_STDERR)
            self._memory = os.memfd_create("embcache-stderr")
            # Else threads that write at once overwrite each other: Linux keeps no lock on the
            # offset of such a file, as it does on that of others.
            fcntl.fcntl(self._memory, fcntl.F_SETFL, os.O_APPEND)
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
        self._users = self._refused = 0
        self._lock.release()


def _hold_standard_streams() -> None:
    """Open those of descriptors 0 to 2 that are closed, as some schedulers start processes.

    Else a file of a table gets such a number, and what prints to standard error writes into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


_hold_standard_streams()
_capture = _Capture()


@contextmanager
def off_screen() -> Iterator[None]:
    """Keep the text of panics within this block off the screen. Short blocks only."""
    entered = _capture.enter()
    try:
        yield
    finally:
        if entered:
            _capture.leave()


@contextmanager
def on_screen() -> Iterator[None]:
    """While processes may be started that keep standard error: `off_screen` does nothing.

    Not within a block that is off screen: it would wait for itself.
    """
    _capture.refuse()
    try:
        yield
    finally:
        _capture.allow()


def each_off_screen(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made off screen; what is done with them is not."""
    while True:
        with off_screen():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
