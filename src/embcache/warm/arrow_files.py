"""Arrow files and streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from embcache.warm.batches import Report, TextBatch
from embcache.warm.columnar import column_paths, texts_of, validated
from embcache.warm.columns import Columns
from embcache.warm.input_file import InputFile

_ARROW_FILE = b"ARROW1"


def read_arrow(file: InputFile, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read an Arrow file or stream.

    Args:
        file: The file; a pipe or standard input, of a stream.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by row, from 0.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
        InputError: It is an Arrow file, not a stream, out of a pipe.
    """
    with _opened(file, columns) as (schema, batches):
        paths = column_paths(schema, columns, str(file))
        yield from texts_of(validated(batches, paths), paths, columns, str(file), report)


def inspect_arrow(file: InputFile, columns: Columns | None = None) -> None:
    """Look at the schema of an Arrow file or stream, and at the end of a file.

    Args:
        file: The file.
        columns: What it must have; None for anything.

    Raises:
        ConfigError: The file lacks a column, or has it twice.
    """
    with _opened(file, columns) as (schema, _):
        if columns is not None:
            column_paths(schema, columns, str(file))


@contextmanager
def _opened(
    file: InputFile, columns: Columns | None
) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
    if not file.can_be_read_again:
        with file.stream() as raw:
            stream = pa.ipc.open_stream(pa.PythonFile(raw, "r"))
            yield stream.schema, stream
        return
    with file.seekable(mapped=True) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        if is_file:
            found = pa.ipc.open_file(source)
            schema = found.schema
            if file.is_remote and columns is not None:
                found = _only(source, schema, columns)
            yield schema, (found.get_batch(i) for i in range(found.num_record_batches))
            return
        if not file.is_remote:  # the stream format, which datasets writes
            stream = pa.ipc.open_stream(source)
            yield stream.schema, stream
            return
    with file.stream() as raw:  # in large pieces
        stream = pa.ipc.open_stream(raw)
        yield stream.schema, stream


def _only(source: pa.NativeFile, schema: pa.Schema, columns: Columns) -> pa.RecordBatchFileReader:
    """A reader of the wanted columns: others, vectors for one, need not be fetched."""
    wanted = [name for name in columns.names if name is not None]
    fields = [
        i
        for i, name in enumerate(schema.names)
        if any(one == name or one.startswith(f"{name}.") for one in wanted)
    ]
    if not fields:  # for the message that they are not there
        return pa.ipc.open_file(source)
    return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
