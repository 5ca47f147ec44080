"""Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embcache.engine.runs import Sizes, runs
from embcache.errors import InputError
from embcache.warm.batches import (
    BATCH_BYTES,
    BATCH_ROWS,
    Report,
    TextBatch,
    batched,
    shown_name,
)
from embcache.warm.columns import Columns
from embcache.warm.opened import can_be_read_again, opened_bytes

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_ARROW_FILE = b"ARROW1"
_MOST_DICTIONARY = 2**21  # writers go over to plain texts once their dictionary has 1 MiB
_DICTIONARY_ROWS = 1000


def read_parquet(path: Path, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read a parquet file.

    Args:
        path: The file.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by row, from 0.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is a pipe.
    """
    import pyarrow.parquet as pq

    if not can_be_read_again(path):
        raise InputError(
            f"{shown_name(path)} is a pipe, and parquet begins to be read at its end: give a file."
        )
    # A small buffer instead of whole column chunks: memory shall not grow with the file.
    with pq.ParquetFile(
        path, buffer_size=2**16, pre_buffer=False, page_checksum_verification=True
    ) as file:
        paths = _paths(file.schema_arrow, columns, path)
        names = [".".join(each) for each in paths if each]
        yield from _texts(_row_groups(file, names), paths, columns, path, report)


def _row_groups(file: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows, so many at once as take `BATCH_BYTES` on the average of their row group."""
    for number in range(file.num_row_groups):
        rows = _rows_at_once(file.metadata.row_group(number), names)
        yield from file.iter_batches(rows, row_groups=[number], columns=names)


def _rows_at_once(group: Any, names: list[str]) -> int:
    parts = [group.column(i) for i in range(group.num_columns)]
    wanted = [part for part in parts if f"{part.path_in_schema}.".startswith(_dotted(names))]
    size = sum(int(part.total_uncompressed_size) for part in wanted)
    rows = BATCH_BYTES * int(group.num_rows) // max(size, 1)
    if size < _MOST_DICTIONARY and any(part.has_dictionary_page for part in wanted):
        # Few texts, each of them many times: any of the rows may be as large as all together.
        rows = min(rows, max(_DICTIONARY_ROWS, BATCH_BYTES // max(size, 1)))
    return max(1, min(rows, BATCH_ROWS))


def _dotted(names: list[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def inspect_parquet(path: Path, columns: Columns | None = None) -> int:
    """Look at the end of a parquet file, which says what is in it.

    Args:
        path: The file.
        columns: What it must have; None for anything.

    Returns:
        The number of its rows.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if columns is not None:
            _paths(file.schema_arrow, columns, path)
        return int(file.metadata.num_rows)


def inspect_arrow(path: Path, columns: Columns | None = None) -> None:
    """Look at the schema of an Arrow file or stream, and at the end of a file.

    Args:
        path: The file.
        columns: What it must have; None for anything.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
    """
    with _opened_arrow(path) as (schema, _):
        if columns is not None:
            _paths(schema, columns, path)


def read_arrow(path: Path, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read an Arrow file or stream.

    Args:
        path: The file; a pipe or standard input, of a stream.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by row, from 0.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is an Arrow file, not a stream, out of a pipe.
    """
    with _opened_arrow(path) as (schema, batches):
        paths = _paths(schema, columns, path)
        yield from _texts(_validated(batches, paths), paths, columns, path, report)


def _validated(
    batches: Iterable[pa.RecordBatch], paths: Sequence[list[str] | None]
) -> Iterator[pa.RecordBatch]:
    """Batches whose offsets and indices point into their own buffers.

    Arrow believes what a file says: one that is damaged, or made so, is read beyond the end of its
    memory, which ends the process (found by `make fuzz`).
    """
    for batch in batches:
        batch.validate()
        for where in paths:
            if where is not None:
                _as_bytes(_column(batch, where)).validate(full=True)
        yield batch


def _as_bytes(column: pa.Array) -> pa.Array:
    """Strings of whatever type as bytes: one that is no UTF-8 is a row to leave out, no error."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        # Whether its indices are in bounds, `_validated` has looked.
        return pa.DictionaryArray.from_arrays(
            column.indices, _as_bytes(column.dictionary), safe=False
        )
    if pa.types.is_string(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_string(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_string_view(kind):
        return column.cast(pa.binary_view())
    return column


@contextmanager
def _opened_arrow(path: Path) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
    if not can_be_read_again(path):
        with opened_bytes(path) as raw:
            stream = pa.ipc.open_stream(pa.PythonFile(raw, "r"))
            yield stream.schema, stream
        return
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:  # the stream format, which datasets writes
            stream = pa.ipc.open_stream(source)
            yield stream.schema, stream


_Path = list[str] | None
"""A column, as names from outside to inside; None for no column."""


def _paths(schema: pa.Schema, columns: Columns, path: Path) -> list[_Path]:
    """Where text, title and instruction are; raises if they are not there."""
    found = [None if name is None else _path(schema, name) for name in columns.names]
    nested = [
        name
        for name, where in zip(columns.names, found, strict=True)
        if name is not None and where is not None and len(where) > 1
    ]
    columns.check([*schema.names, *nested], str(path))
    return found


def _path(fields: Any, name: str) -> _Path:
    """The path to a column; a name is tried as a whole before its parts."""
    names = [field.name for field in fields]
    if name in names:
        return [name]
    at = name.find(".")
    while at >= 0:
        if names.count(name[:at]) == 1:
            kind = fields[names.index(name[:at])].type
            inner = _path(kind, name[at + 1 :]) if pa.types.is_struct(kind) else None
            if inner is not None:
                return [name[:at], *inner]
        at = name.find(".", at + 1)
    return None


def _texts(
    batches: Iterable[pa.RecordBatch],
    paths: list[_Path],
    columns: Columns,
    path: Path,
    report: Report,
) -> Iterator[TextBatch]:
    start = 0
    for batch in batches:
        whole = [None if where is None else _column(batch, where) for where in paths]
        for run in runs(_sizes(whole, batch.num_rows), BATCH_BYTES, BATCH_ROWS):
            found = [None if column is None else column[run] for column in whole]
            numbers = range(start + run.start, start + run.stop)
            yield from _texts_of(found, numbers, columns, path, report)
        start += batch.num_rows


def _texts_of(
    found: list[pa.Array | None], numbers: range, columns: Columns, path: Path, report: Report
) -> Iterator[TextBatch]:
    """Some rows' texts.

    Args:
        found: Their texts, titles and instructions, where there are such.
        numbers: Their numbers in the file.
        columns: What to make of them.
        path: The file.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts.
    """
    texts = _all_texts(found, columns)
    if texts is not None:
        yield TextBatch(texts, str(path), numbers=numbers)
        return
    none = [None] * len(numbers)
    values = [none if column is None else _values(column) for column in found]
    rows = zip(numbers, zip(*values, strict=True), strict=True)
    yield from batched(rows, columns, str(path), "row", report)


def _sizes(found: list[pa.Array | None], count: int) -> Sizes:
    """Bytes of each row, about: those of its strings, or of other types the average."""
    sizes = np.zeros(count, np.int64)
    for column in found:
        if column is None or not count:
            continue
        kind = column.type
        indices = column.indices if pa.types.is_dictionary(kind) else None
        strings = column if indices is None else column.dictionary
        try:
            lengths = pc.binary_length(strings)
        except pa.ArrowNotImplementedError:  # of views, and of types that are no strings
            sizes += column.nbytes // count
            continue
        lengths = lengths if indices is None else lengths.take(indices)
        sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    return sizes


def _column(batch: pa.RecordBatch, where: list[str]) -> pa.Array:
    column = batch.column(where[0])
    for name in where[1:]:
        column = pc.struct_field(column, [column.type.get_field_index(name)])
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _all_texts(found: list[pa.Array | None], columns: Columns) -> list[str] | None:
    """The texts at once, which is much faster; None where rows have to be looked at one by one."""
    text, *others = found
    if text is None or text.null_count or any(other is not None for other in others):
        return None
    if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)):
        return None
    try:
        texts: list[str] = text.to_pylist()
    except UnicodeDecodeError:  # Arrow does not look
        return None
    return [one.strip() for one in texts] if columns.role == "document" else texts


def _values(column: pa.Array) -> list[Any]:
    """A column's values; of strings, bytes."""
    column = _as_bytes(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[Any] = column.to_pylist()
    return values
