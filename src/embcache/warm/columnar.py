"""From columns to texts: what Parquet, Arrow and Lance have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embcache.engine.runs import Sizes, runs
from embcache.warm.batches import BATCH_BYTES, BATCH_ROWS, Report, TextBatch, batched
from embcache.warm.columns import Columns

ColumnPath = list[str] | None
"""A column, as names from outside to inside; None for no column."""


def column_paths(schema: pa.Schema, columns: Columns, source: str) -> list[ColumnPath]:
    """Where text, title and instruction are.

    Args:
        schema: Of the source.
        columns: What is wanted.
        source: The source's name.

    Returns:
        Three paths.

    Raises:
        ConfigError: The source lacks a column, or has it twice.
    """
    found = [None if name is None else _path(schema, name) for name in columns.names]
    nested = [
        name
        for name, where in zip(columns.names, found, strict=True)
        if name is not None and where is not None and len(where) > 1
    ]
    columns.check([*schema.names, *nested], source)
    return found


def _path(fields: Any, name: str) -> ColumnPath:
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


def validated(
    batches: Iterable[pa.RecordBatch], paths: Sequence[ColumnPath]
) -> Iterator[pa.RecordBatch]:
    """Batches whose offsets and indices point into their own buffers.

    Arrow believes what a file says: one that is damaged, or made so, is read beyond the end of its
    memory, which ends the process (found by `make fuzz`).

    Args:
        batches: Batches as they were read.
        paths: The columns that are wanted.

    Yields:
        The same.

    Raises:
        pa.ArrowInvalid: One of them is damaged.
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


def texts_of(
    batches: Iterable[pa.RecordBatch],
    paths: Sequence[ColumnPath],
    columns: Columns,
    source: str,
    report: Report,
    start: int = 0,
) -> Iterator[TextBatch]:
    """The texts of rows that come in columns.

    Args:
        batches: The rows, with the columns that `paths` lead to.
        paths: As of `column_paths`.
        columns: What to make of a row.
        source: The source's name.
        report: Is called with each row that is left out.
        start: The number of the first row.

    Yields:
        Batches of at most `BATCH_ROWS` texts and `BATCH_BYTES`, numbered by row.
    """
    for batch in batches:
        whole = [None if where is None else _column(batch, where) for where in paths]
        for run in runs(_sizes(whole, batch.num_rows), BATCH_BYTES, BATCH_ROWS):
            found = [None if column is None else column[run] for column in whole]
            numbers = range(start + run.start, start + run.stop)
            yield from _batches(found, numbers, columns, source, report)
        start += batch.num_rows


def _batches(
    found: list[pa.Array | None], numbers: range, columns: Columns, source: str, report: Report
) -> Iterator[TextBatch]:
    """Some rows' texts.

    Args:
        found: Their texts, titles and instructions, where there are such.
        numbers: Their numbers in the file.
        columns: What to make of them.
        source: The source's name.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts.
    """
    texts = _all_texts(found, columns)
    if texts is not None:
        yield TextBatch(texts, source, numbers=numbers)
        return
    none = [None] * len(numbers)
    values = [none if column is None else _values(column) for column in found]
    rows = zip(numbers, zip(*values, strict=True), strict=True)
    yield from batched(rows, columns, source, "row", report)


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
