"""How rows of a store are asked for: each of them once, the close ones together."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.store import Location, fetching
from embcache.store.fetching import Call, plan, readahead, several_at_once

ROW = 1544  # bytes: 384 components and a checksum


def asked(calls: list[Call]) -> np.ndarray:
    """The positions that come of the calls and are handed on."""
    found = [np.empty(0, np.int64)]
    for call in calls:
        rows = call.positions if call.picked is None else call.positions[call.picked]
        assert len(rows) == call.span.stop - call.span.start
        found.append(rows)
    return np.concatenate(found)


@given(
    st.lists(st.integers(0, 30_000), max_size=300),
    st.sampled_from([12, ROW, 4104, 70_000, 10_000_000]),
    st.booleans(),
)
def test_each_row_is_asked_for_once(some: list[int], row_bytes: int, close: bool) -> None:
    positions = np.sort(np.array(some, np.int64) // (100 if close else 1))
    calls = plan(positions, row_bytes)
    assert (asked(calls) == positions).all()
    assert [call.span.start for call in calls[1:]] == [call.span.stop for call in calls[:-1]]
    most = max(1, fetching.CALL_BYTES // row_bytes)
    assert all(len(np.unique(call.positions)) <= most for call in calls)


def test_all_rows_are_asked_for_in_large_calls() -> None:
    calls = plan(np.arange(50_000), ROW)
    assert len(calls) == 10 and all(call.picked is None for call in calls)


def test_close_rows_are_read_with_those_between() -> None:
    calls = plan(np.arange(0, 50_000, 10), ROW)
    assert len(calls) == 10 and sum(len(call.positions) for call in calls) > 48_000


def test_rows_that_lie_apart_are_asked_for_together() -> None:
    positions = np.arange(0, 1_000_000, 1000)
    calls = plan(positions, ROW)
    assert len(calls) == 1 and (calls[0].positions == positions).all()


def test_both_in_one() -> None:
    positions = np.concatenate([np.arange(0, 500_000, 1000), np.arange(600_000, 602_000)])
    calls = plan(positions, ROW)
    assert (asked(calls) == positions).all() and len(calls) == 2


def test_a_scan_of_a_store_reads_many_fragments_at_once() -> None:
    assert readahead(Location.of("cache")).fragment_readahead == 1
    assert readahead(Location.of("s3://bucket/cache")).fragment_readahead == 16


def test_calls_are_ahead_in_order_and_bounded() -> None:
    calls = [Call(slice(i, i + 1), np.array([i]), None) for i in range(100)]
    lock, made = threading.Lock(), 0

    def do(call: Call) -> int:
        nonlocal made
        with lock:
            made += 1
        return int(call.positions[0])

    for number, (call, found) in enumerate(several_at_once(do, calls)):
        assert call is calls[number] and found == number
        assert made <= number + 1 + 2 * fetching.CALLS
    assert made == 100


def test_an_error_is_raised_where_its_call_comes() -> None:
    def do(call: Call) -> int:
        if call.span.start == 3:
            raise ValueError("the third")
        return call.span.start

    calls = [Call(slice(i, i + 1), np.array([i]), None) for i in range(30)]
    found = several_at_once(do, calls)
    assert [next(found)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)


def test_after_an_error_no_call_begins() -> None:
    begun: list[Call] = []

    def fail(call: Call) -> None:
        begun.append(call)
        if call.span.start == 0:
            raise ValueError("gone")
        time.sleep(0.5)

    calls = [Call(slice(i, i + 1), np.array([i]), None) for i in range(16)]
    with pytest.raises(ValueError, match="gone"):
        list(several_at_once(fail, calls))
    assert len(begun) < len(calls)
