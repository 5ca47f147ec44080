"""Threads that work side by side, and end with the `with` or the process."""

from __future__ import annotations

import threading
import time

import pytest

from embcache.store.daemon_pool import DaemonPool


def test_work_is_done_side_by_side_and_comes_back_in_order() -> None:
    together = threading.Barrier(3, timeout=10)

    def work(number: int) -> int:
        together.wait()
        return -number

    with DaemonPool(3) as pool:
        assert list(pool.map(work, range(6))) == [0, -1, -2, -3, -4, -5]


def test_no_more_threads_than_that() -> None:
    with DaemonPool(2) as pool:
        names = set(pool.map(lambda _: time.sleep(0.01) or threading.get_ident(), range(20)))
    assert len(names) <= 2


def test_the_end_of_a_with_waits_for_all_work() -> None:
    done = []
    before = threading.active_count()
    with DaemonPool(1) as pool:
        for number in range(3):
            pool.submit(lambda number=number: (time.sleep(0.05), done.append(number)))
    assert done == [0, 1, 2] and threading.active_count() == before


def test_what_is_raised_comes_out_and_what_is_cancelled_is_not_done() -> None:
    def fail() -> None:
        raise ValueError("its own")

    started, wait = threading.Event(), threading.Event()
    with DaemonPool(1) as pool:
        failing = pool.submit(fail)
        running = pool.submit(lambda: (started.set(), wait.wait(10)))
        waiting = pool.submit(fail)
        assert started.wait(10) and waiting.cancel()
        wait.set()
    with pytest.raises(ValueError, match="its own"):
        failing.result()
    assert running.result()[1] is True and waiting.cancelled()
