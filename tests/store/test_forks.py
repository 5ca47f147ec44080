from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from embcache import CacheError, ForkedProcessError, NotCopiedError
from embcache.store import Space, forks
from embcache.store.forks import ForkLock, in_use


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether something holds in a forked process, which may not hang for it."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, b"y" if check() else b"n")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said == b"y"


class Held:
    """Another thread in a context, for the duration of a `with` block."""

    def __init__(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        self._inside, self._end = threading.Event(), threading.Event()

        def hold() -> None:
            with context():
                self._inside.set()
                self._end.wait(60)

        self._thread = threading.Thread(target=hold)

    def __enter__(self) -> None:
        self._thread.start()
        self._inside.wait(60)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_it_is_a_lock_of_one_thread_that_may_take_it_twice() -> None:
    lock = ForkLock()
    with lock, lock:
        assert lock.acquire(blocking=False)
        lock.release()
    with Held(lambda: lock):
        assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)
    lock.release()
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        lock.release()


def test_what_another_thread_holds_is_free_in_a_fork() -> None:
    lock = ForkLock()
    with Held(lambda: lock):
        assert in_a_fork(lambda: lock.acquire(blocking=False))
        assert not lock.acquire(blocking=False)


def test_what_the_forking_thread_holds_it_can_release() -> None:
    lock = ForkLock()

    def release() -> bool:
        lock.release()
        return lock.acquire(blocking=False)

    with lock:
        assert in_a_fork(release)


def test_a_use_in_a_fork_after_a_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_users", set())

    def refused() -> bool:
        said = rf"used in process {os.getppid()}, and .* is a fork: .*'spawn'.* before the cache"
        with pytest.raises(ForkedProcessError, match=said), in_use():
            pass
        return True

    with in_use():
        assert in_a_fork(refused)
    assert in_a_fork(refused)
    with in_use():  # not in this process
        pass


def test_a_fork_before_the_first_use_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_users", set())

    def used() -> bool:
        with in_use(), in_use():
            return True

    assert in_a_fork(used)
    assert used()


def test_a_fork_is_no_damage() -> None:
    """What looks for damage must not set a sound table aside for it."""
    assert not issubclass(ForkedProcessError, CacheError)


@pytest.mark.parametrize("how", [pickle.dumps, copy.deepcopy])
def test_what_pickling_a_handle_says(
    open_space: Callable[..., Space], how: Callable[[Any], Any]
) -> None:
    """As an argument of a process that is spawned; an encoder has a space in it."""
    with pytest.raises(NotCopiedError, match=r"cannot be pickled or .*make the encoder there"):
        how(open_space())
