"""Values of rows by their positions, each row checked: the ways to read them, and which when.

On disk, vectors come straight out of the data files where much is wanted of one, see
`embcache.store.pages`, and through Lance otherwise: a fragment is scanned where many of its rows
are wanted, and few are taken one by one. From a store, all are fetched in several calls at once,
see `embcache.store.fetching`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.identity.keys import Keys
from embcache.store import panics
from embcache.store.base import Part
from embcache.store.daemon_pool import DaemonPool
from embcache.store.fetching import Call, plan, several_at_once
from embcache.store.index import Positions
from embcache.store.pages import VectorPages, locate
from embcache.store.schema import VECTORS
from embcache.store.verify import batch_values, damaged_rows

if TYPE_CHECKING:
    from embcache.store.reader import Reader

logger = logging.getLogger(__name__)

_CHECKSUM = "checksum"
_CHECKSUM_BYTES = 8
_SUMS_AT_ONCE = 2**16
# From a tenth of a fragment's rows on, scanning the fragment is faster than taking them one by one.
_SCAN_FROM_FRACTION = 0.1
# From so many bytes of a fragment on, it pays to find out where its vectors lie: a millisecond.
_DIRECT_FROM_BYTES = 2**20
_THREADS = 2


class Found(NamedTuple):
    """Rows from Lance.

    Attributes:
        at: Which of the positions they are of.
        batch: Rows with the columns that were asked for.
        picked: Which of the batch's rows they are; None for all.
    """

    at: Positions
    batch: pa.RecordBatch
    picked: Positions | None


def read_values(reader: Reader, positions: Positions, keys: Keys) -> Iterator[Part]:
    """Read rows, each checked with the key that it should have; what Lance raises passes as it is.

    Args:
        reader: Of the version.
        positions: `(n,) int64`, where the rows lie, sorted.
        keys: `(n, 2) uint64`, whose rows they should be.
    """
    left = np.ones(len(positions), bool)
    for part in _direct(reader, positions, keys):
        at = part.at[~part.damaged]  # the others once more, by Lance
        left[at] = False
        yield part if len(at) == len(part.at) else Part(at, part.values[~part.damaged], left[at])
    rest = np.flatnonzero(left)
    for found in _through_lance(reader, positions[rest], [reader.layout.value, _CHECKSUM]):
        values = batch_values(found.batch, reader.layout)
        sums = found.batch.column(_CHECKSUM).to_numpy()
        if found.picked is not None:
            values, sums = values[found.picked], sums[found.picked]
        at = rest[found.at]
        yield Part(at, values, damaged_rows(keys[at], values, sums))


def _direct(reader: Reader, positions: Positions, keys: Keys) -> Iterator[Part]:
    """What can be read straight out of data files, of fragments of which much is wanted."""
    if reader.location.folder is None or reader.layout is not VECTORS:
        return
    if not (np.diff(positions) > 0).all():  # one twice: nobody asks for that often
        return
    owner = _owners(reader, positions)
    wanted = np.bincount(owner, minlength=len(reader.fragments))
    chosen = np.flatnonzero(wanted * 4 * reader.dim >= _DIRECT_FROM_BYTES)
    if not len(chosen):
        return
    sums = np.zeros(len(positions), np.uint64)
    some = np.flatnonzero(np.isin(owner, chosen))
    for found in _through_lance(reader, positions[some], [_CHECKSUM], _SUMS_AT_ONCE):
        column = found.batch.column(_CHECKSUM).to_numpy()
        sums[some[found.at]] = column if found.picked is None else column[found.picked]
    for number, pages in _located(reader, chosen):
        first, last = np.searchsorted(owner, (number, number + 1)).tolist()
        for block in pages.blocks(positions[first:last] - reader.starts[number]):
            try:
                values = pages.read(block)
            except OSError as error:
                logger.debug("%s is left to Lance: %s", pages.path, error)
                break
            at = np.arange(first + block.span.start, first + block.span.stop)
            yield Part(at, values, damaged_rows(keys[at], values, sums[at]))


def _located(reader: Reader, fragments: Positions) -> Iterator[tuple[int, VectorPages]]:
    """Where the vectors of some fragments lie, those of which that is known."""
    folder, dim = reader.location.folder, reader.dim
    assert folder is not None
    table = folder

    def find(number: int) -> VectorPages | None:
        return locate(reader.fragments[number], table, dim)

    # One ahead, in a thread. To read ahead in threads, too, was no faster: checking rows is work
    # of Python, and each thread waits for the others' turns.
    for number, pages in several_at_once(find, fragments.tolist(), 1):
        if pages is not None:
            yield number, pages


def _owners(reader: Reader, positions: Positions) -> Positions:
    """In which fragment each position is."""
    return np.searchsorted(reader.starts, positions, side="right") - 1


def _through_lance(
    reader: Reader, positions: Positions, columns: Sequence[str], at_once: int | None = None
) -> Iterator[Found]:
    """Some columns of rows, in the way that is the fastest; not checked."""
    if reader.location.folder is None:
        yield from panics.each_off_screen(fetched(reader, positions, columns))
        return
    owner = _owners(reader, positions)
    wanted = np.bincount(owner, minlength=len(reader.fragments))
    scanned = wanted >= _SCAN_FROM_FRACTION * np.diff(reader.starts)
    scan, take = np.flatnonzero(scanned[owner]), np.flatnonzero(~scanned[owner])
    size = at_once or reader.batch_rows
    scans = _scanned(reader, positions[scan], columns, scanned, size)
    for found in panics.each_off_screen(scans):
        yield found._replace(at=scan[found.at])
    for found in panics.each_off_screen(taken(reader, positions[take], columns, size)):
        yield found._replace(at=take[found.at])


def _scanned(
    reader: Reader,
    positions: Positions,
    columns: Sequence[str],
    scanned: npt.NDArray[np.bool_],
    size: int,
) -> Iterator[Found]:
    """Scan the chosen fragments in order and pick the wanted rows out of each batch."""
    if not len(positions):
        return
    # Position within the scan = position in the table less the rows of skipped fragments.
    skipped = np.cumsum(np.where(scanned, 0, np.diff(reader.starts)))
    local = positions - skipped[_owners(reader, positions)]
    fragments = [reader.fragments[i] for i in np.flatnonzero(scanned)]
    start = 0
    for batch in reader.batches(columns, fragments, batch_rows=size):
        stop = start + batch.num_rows
        first, last = np.searchsorted(local, (start, stop))
        if last > first:
            picked = local[first:last] - start
            whole = np.array_equal(picked, np.arange(batch.num_rows))  # then spare the copy
            yield Found(np.arange(first, last), batch, None if whole else picked)
        start = stop


def fetched(reader: Reader, positions: Positions, columns: Sequence[str]) -> Iterator[Found]:
    """Take rows from a store, see `embcache.store.fetching`; not checked.

    Args:
        reader: Of the version.
        positions: `(n,) int64`, sorted.
        columns: Which.
    """

    def fetch(call: Call) -> pa.RecordBatch:
        return _take(reader, call.positions, columns)

    calls = plan(positions, 4 * reader.dim + _CHECKSUM_BYTES)
    for call, batch in several_at_once(fetch, calls):
        yield Found(np.arange(call.span.start, call.span.stop), batch, call.picked)


def taken(
    reader: Reader, positions: Positions, columns: Sequence[str], at_once: int | None = None
) -> Iterator[Found]:
    """Take scattered rows, several calls at a time; not checked.

    Args:
        reader: Of the version.
        positions: `(n,) int64`.
        columns: Which.
        at_once: Rows of a call; None for the reader's.
    """
    size = at_once or reader.batch_rows
    spans = [np.arange(at, min(at + size, len(positions))) for at in range(0, len(positions), size)]

    def take(span: Positions) -> pa.RecordBatch:
        return _take(reader, positions[span], columns)

    with DaemonPool(_THREADS) as pool:
        # A few calls ahead of the consumer, not all of them: memory stays bounded.
        for at in range(0, len(spans), 4 * _THREADS):
            group = spans[at : at + 4 * _THREADS]
            for span, batch in zip(group, pool.map(take, group), strict=True):
                yield Found(span, batch, None)


def _take(reader: Reader, positions: Positions, columns: Sequence[str]) -> pa.RecordBatch:
    table = reader.dataset.take(positions, columns=list(columns))
    if table.num_rows != len(positions):
        raise ValueError(f"Lance returned {table.num_rows} of {len(positions)} rows")
    return table.combine_chunks().to_batches()[0]
