"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embcache.engine.runs import runs
from embcache.errors import InputError
from embcache.warm.batches import BATCH_BYTES, BATCH_ROWS, Report, TextBatch, shown_name
from embcache.warm.columnar import ColumnPath, column_paths, texts_of
from embcache.warm.columns import Columns
from embcache.warm.input_file import InputFile

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MOST_DICTIONARY = 2**21  # writers go over to plain texts once their dictionary has 1 MiB
_DICTIONARY_ROWS = 1000


def read_parquet(
    file: InputFile, columns: Columns, report: Report, pieces: range | None = None
) -> Iterator[TextBatch]:
    """Read a parquet file.

    Args:
        file: The file.
        columns: Where a row's text is.
        report: Is called with each row that is left out.
        pieces: The row groups that are read, from 0; None for all.

    Yields:
        Batches of texts, numbered by row of the whole file, from 0.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is a pipe, or has fewer row groups than `pieces` names.
    """
    with _opened(file) as opened:
        paths = column_paths(opened.schema_arrow, columns, str(file))
        names = _dotted(paths)
        numbers = _row_groups(opened, pieces, file)
        start = sum(opened.metadata.row_group(i).num_rows for i in range(numbers.start))
        batches = _batches(opened, names, numbers)
        yield from texts_of(batches, paths, columns, str(file), report, start)


def inspect_parquet(
    file: InputFile, columns: Columns | None = None, pieces: range | None = None
) -> int:
    """Look at the end of a parquet file, which says what is in it.

    Args:
        file: The file.
        columns: What it must have; None for anything.
        pieces: The row groups that are counted, from 0; None for all.

    Returns:
        The number of its rows.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is a pipe, or has fewer row groups than `pieces` names.
    """
    with _opened(file) as opened:
        if columns is not None:
            column_paths(opened.schema_arrow, columns, str(file))
        numbers = _row_groups(opened, pieces, file)
        return sum(int(opened.metadata.row_group(i).num_rows) for i in numbers)


def parquet_pieces(file: InputFile, columns: Columns, most_bytes: int) -> list[range]:
    """Divide a parquet file into neighbouring row groups.

    Args:
        file: The file.
        columns: What is read of it.
        most_bytes: Uncompressed bytes of these columns in a piece, at most; a row group is not
            divided.

    Returns:
        Ranges of row groups, all of them in their order.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is a pipe.
    """
    with _opened(file) as opened:
        names = _dotted(column_paths(opened.schema_arrow, columns, str(file)))
        metadata = opened.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes = [sum(part.total_uncompressed_size for part in _parts(g, names)) for g in groups]
        found = runs(np.array(sizes, np.int64), most_bytes)
        return [range(piece.start, piece.stop) for piece in found]


@contextmanager
def _opened(file: InputFile) -> Iterator[pq.ParquetFile]:
    import pyarrow.parquet as pq

    if not file.can_be_read_again:
        raise InputError(
            f"{shown_name(file)} is a pipe, and parquet begins to be read at its end: give a file."
        )
    # A small buffer instead of whole column chunks: memory shall not grow with the file.
    with (
        file.seekable() as source,
        pq.ParquetFile(
            source,
            buffer_size=file.buffer_bytes,
            pre_buffer=False,
            page_checksum_verification=True,
        ) as opened,
    ):
        yield opened


def _row_groups(opened: pq.ParquetFile, pieces: range | None, file: InputFile) -> range:
    count = opened.metadata.num_row_groups
    if pieces is not None and pieces.stop > count:
        raise InputError(
            f"{file} has {count} row groups, and {pieces.start} to {pieces.stop - 1} are to be "
            "read: it was written anew since it was looked at. Begin again."
        )
    return range(count) if pieces is None else pieces


def _batches(
    opened: pq.ParquetFile, names: list[str], numbers: Iterable[int]
) -> Iterator[pa.RecordBatch]:
    """The rows, so many at once as take `BATCH_BYTES` on the average of their row group."""
    for number in numbers:
        rows = _rows_at_once(opened.metadata.row_group(number), names)
        yield from opened.iter_batches(rows, row_groups=[number], columns=names)


def _rows_at_once(group: Any, names: list[str]) -> int:
    wanted = _parts(group, names)
    size = sum(int(part.total_uncompressed_size) for part in wanted)
    rows = BATCH_BYTES * int(group.num_rows) // max(size, 1)
    if size < _MOST_DICTIONARY and any(part.has_dictionary_page for part in wanted):
        # Few texts, each of them many times: any of the rows may be as large as all together.
        rows = min(rows, max(_DICTIONARY_ROWS, BATCH_BYTES // max(size, 1)))
    return max(1, min(rows, BATCH_ROWS))


def _parts(group: Any, names: list[str]) -> list[Any]:
    """What a row group holds of columns, and of what is nested in them."""
    inside = tuple(f"{name}." for name in names)
    parts = [group.column(i) for i in range(group.num_columns)]
    return [part for part in parts if f"{part.path_in_schema}.".startswith(inside)]


def _dotted(paths: list[ColumnPath]) -> list[str]:
    return [".".join(each) for each in paths if each]
