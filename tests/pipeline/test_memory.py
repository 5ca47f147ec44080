from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from embcache.pipeline import memory
from embcache.pipeline.result import Result

SIZE = 2**26


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def wait_for_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "embcache-memory":
            thread.join()


def test_memory_is_there_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LEAST_BYTES", SIZE)
    array = np.empty(SIZE // 4, np.float32)
    before = resident()
    memory.get_ahead(array)
    wait_for_thread()
    assert resident() - before > 0.9 * SIZE


@pytest.mark.parametrize("first", [0, 1, 1023, 1025])
def test_values_stay(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fills it does not wait for the thread; and arrays begin anywhere."""
    monkeypatch.setattr(memory, "_LEAST_BYTES", 0)
    array = np.arange(3_000_000, dtype=np.float32)[first:]
    memory.get_ahead(array)
    array[::7] = -1
    wait_for_thread()
    expected = np.arange(3_000_000, dtype=np.float32)[first:]
    expected[::7] = -1
    assert np.array_equal(array, expected)


def test_an_array_that_is_less_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LEAST_BYTES", 0)
    array = np.ones(3, np.float32)
    memory.get_ahead(array)
    wait_for_thread()
    assert array.tolist() == [1, 1, 1]


def test_small_ones_are_left_alone() -> None:
    memory.get_ahead(np.empty(1000, np.float32))
    assert "embcache-memory" not in {thread.name for thread in threading.enumerate()}


def test_a_result_is_expected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "embcache.pipeline.result.get_ahead", lambda array: asked.append(array.nbytes)
    )
    result = Result(10)
    result.allocate(3)
    result.expect_all()
    result.expect_all()
    assert asked == [120]
