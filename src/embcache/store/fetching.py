"""How rows are best fetched from a store that is some milliseconds away.

On disk, much is scanned and little is taken row by row. In a store everything is taken, in several
calls at once, and where rows lie close together so are those between: 50,000 rows of 1,024
components took 0.7 to 1.4 s in calls of 4 MB and hardly memory beside the result, as a scan 1.7 to
2.2 s and 300 MB, whatever is set to bound it. Measured by `make bench-store`, see
docs/object_storage.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from embcache.store.daemon_pool import DaemonPool
from embcache.store.index import Positions
from embcache.store.location import Location

C = TypeVar("C")
T = TypeVar("T")

CALLS = 8
"""Calls at once."""

CALL_BYTES = 8 * 2**20
"""What a call brings, at most: with those that wait, 128 MiB."""

BLOCK_BYTES = 2**16
"""What Lance reads of a store at least, and the gap between rows that it reads over."""


class Readahead(NamedTuple):
    """Arguments of Lance's scanner.

    Attributes:
        batch_readahead: Batches that are decoded ahead.
        fragment_readahead: Fragments that are read at once.
        io_buffer_size: Bytes that are read ahead, about; None for Lance's default, 2 GiB.
    """

    batch_readahead: int
    fragment_readahead: int
    io_buffer_size: int | None


# One fragment after the other: memory that is used again faults no pages in.
_ON_DISK = Readahead(2, 1, None)
# Each fragment takes three requests, one after the other: 16 small ones took 1.3 s in turn, 20 ms
# away, and 0.2 to 0.3 s at once. Without a bound, eight of 62 MB took 540 MB of memory, and 60 so.
_IN_A_STORE = Readahead(2, 16, 64 * 2**20)


def readahead(location: Location) -> Readahead:
    """What a scan of a table reads ahead."""
    return _IN_A_STORE if location.folder is None else _ON_DISK


class Call(NamedTuple):
    """One call for rows.

    Attributes:
        span: Which of the wanted positions it is for.
        positions: `(n,) int64`, what is asked for.
        picked: Which of the rows that come are wanted; None for all, in this order.
    """

    span: slice
    positions: Positions
    picked: Positions | None


def plan(positions: Positions, row_bytes: int) -> list[Call]:
    """The calls by which rows are fetched.

    Where a block of 64 KiB has one wanted row or more, all rows from the first to the last are
    asked for: single ones would take the most requests there, for most of the bytes.

    Args:
        positions: `(n,) int64`, sorted.
        row_bytes: Bytes of a row, of what is read of it.
    """
    most = max(1, CALL_BYTES // row_bytes)
    dense = max(1, CALL_BYTES // BLOCK_BYTES)
    edges = np.flatnonzero(np.diff(positions // most)) + 1
    bounds = [0, *edges.tolist(), len(positions)] if len(positions) else [0]
    calls: list[Call] = []
    since = 0  # where those begin that lie apart, and are not called for yet
    for start, stop in pairwise(bounds):
        together = stop - start >= min(dense, most)
        if together or stop - since > most:
            calls += _apart(positions, since, start)
            since = start
        if together:
            calls.append(_between(positions, start, stop))
            since = stop
    return calls + _apart(positions, since, len(positions))


def _apart(positions: Positions, start: int, stop: int) -> list[Call]:
    return [Call(slice(start, stop), positions[start:stop], None)] if stop > start else []


def _between(positions: Positions, start: int, stop: int) -> Call:
    first, last = int(positions[start]), int(positions[stop - 1])
    picked = positions[start:stop] - first
    whole = last - first + 1 == stop - start and bool((np.diff(picked) == 1).all())
    return Call(slice(start, stop), np.arange(first, last + 1), None if whole else picked)


def several_at_once(
    do: Callable[[C], T], calls: Iterable[C], threads: int = CALLS
) -> Iterator[tuple[C, T]]:
    """Make calls, some ahead of whoever asks for what came of them, in order.

    Args:
        do: Makes one.
        calls: All of them.
        threads: How many are made at once; twice as many are begun, or done and waiting.
    """
    ahead: deque[tuple[C, Future[T]]] = deque()
    with DaemonPool(threads) as pool:
        try:
            for call in calls:
                ahead.append((call, pool.submit(do, call)))
                if len(ahead) >= 2 * threads:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            # After an error, each that has not begun would wait for the store as long again.
            for _, future in ahead:
                future.cancel()
