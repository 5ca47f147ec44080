from __future__ import annotations

import threading
import time

import pytest

from embcache.pipeline.patience import Beat, HangingError, patiently
from tests.conftest import run_python


def test_what_the_work_returns_and_raises_comes_out() -> None:
    assert patiently(lambda _: 7, 10) == 7

    def fail(_: Beat) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        patiently(fail, 10)


def test_work_that_was_given_up_ends_at_its_next_beat() -> None:
    ended, went_on = threading.Event(), threading.Event()

    def hang(beat: Beat) -> None:
        time.sleep(0.5)
        try:
            beat()
            went_on.set()
        finally:
            ended.set()

    with pytest.raises(HangingError, match=r"did not get on for 0\.1 seconds"):
        patiently(hang, 0.1)
    assert ended.wait(10) and not went_on.is_set()


def test_what_hangs_keeps_no_process_from_exiting() -> None:
    code = """
import atexit, time
from embcache.pipeline import patience
patience.AT_EXIT_SECONDS = 0.5
try:
    patience.patiently(lambda _: time.sleep(200), 0.1)
except patience.HangingError as error:
    print(error)
"""
    began = time.monotonic()
    assert run_python(code) == "it did not get on for 0.1 seconds\n"
    assert time.monotonic() - began < 60


def test_nor_do_threads_in_which_it_reads() -> None:
    code = """
import time
from embcache.pipeline import patience
from embcache.store.fetching import several_at_once
patience.AT_EXIT_SECONDS = 0.5
def read(beat):
    list(several_at_once(lambda call: time.sleep(200), [1]))
try:
    patience.patiently(read, 0.1)
except patience.HangingError as error:
    print(error)
"""
    began = time.monotonic()
    assert run_python(code) == "it did not get on for 0.1 seconds\n"
    assert time.monotonic() - began < 60
