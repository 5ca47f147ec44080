"""How rows are best fetched from where they lie: disk, or a store that is some milliseconds away.

Measured by `make bench-store`, and set by its tables (docs/object_storage.md).
"""

from __future__ import annotations

from typing import NamedTuple

from embcache.store.location import Location

_SCAN_FROM_FRACTION = 0.1
_BLOCK_BYTES = 2**16  # what Lance reads of a store at least, and the gap that it reads over
_MOST_FRACTION = 0.5


class Readahead(NamedTuple):
    """Arguments of Lance's scanner.

    Attributes:
        batch_readahead: Batches that are decoded ahead.
        fragment_readahead: Fragments that are read at once.
        io_buffer_size: Bytes that are read ahead, at most; None for Lance's default, 2 GiB.
    """

    batch_readahead: int
    fragment_readahead: int
    io_buffer_size: int | None


# One fragment after the other: memory that is used again faults no pages in.
_ON_DISK = Readahead(2, 1, None)
# Each fragment takes three requests, one after the other: 16 small ones took 1.3 s in turn, 20 ms
# away, and 0.2 to 0.3 s at once. Without a bound, large ones took 540 MB; with it 60.
_IN_A_STORE = Readahead(2, 16, 64 * 2**20)


def readahead(location: Location) -> Readahead:
    """What a scan of a table reads ahead."""
    return _IN_A_STORE if location.folder is None else _ON_DISK


def scan_from(location: Location, row_bytes: int) -> float:
    """The share of a fragment's rows from which on it is scanned, and rows are not taken singly.

    In a store, it is where a block of 64 KiB has one wanted row: there takes need the most
    requests, and from there on Lance reads the rows between as well.

    Args:
        location: The table.
        row_bytes: Bytes of a row, of what is read of it.
    """
    if location.folder is not None:
        return _SCAN_FROM_FRACTION
    return min(row_bytes / _BLOCK_BYTES, _MOST_FRACTION)
