"""Lance tables, a cache's spaces among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lance
import numpy as np
import pyarrow as pa

from embcache.engine.runs import runs
from embcache.errors import CacheError, InputError
from embcache.store.lance_errors import failing_as
from embcache.store.location import Location
from embcache.warm.batches import BATCH_BYTES, BATCH_ROWS, Report, TextBatch, shown_name
from embcache.warm.columnar import ColumnPath, column_paths, texts_of, validated
from embcache.warm.columns import Columns
from embcache.warm.input_file import InputFile

_CALL_BYTES = 2**24
_UNKNOWN_ROW = 2**12  # bytes, where a manifest does not say what a file has
_BATCHES_AHEAD = 2  # Lance's own number is that of the processors
_FRAGMENTS_AHEAD = 16  # small ones: each takes some requests, one after the other
_LEAST_ROW = 16  # bytes, where a table in Lance's first format does not say what a column takes


def read_lance(
    file: InputFile,
    columns: Columns,
    report: Report,
    pieces: range | None = None,
    version: int | None = None,
) -> Iterator[TextBatch]:
    """Read a Lance table.

    Args:
        file: The table's folder.
        columns: Where a row's text is.
        report: Is called with each row that is left out.
        pieces: The fragments that are read, by their place in the version; None for all.
        version: Of the table; None for the newest.

    Yields:
        Batches of texts, numbered by row of the whole table, from 0. Deleted rows do not count.

    Raises:
        ConfigError: The table lacks a column.
        InputError: It is no Lance table, damaged, or in a store that does not answer.
    """
    with _errors(file):
        dataset = _opened(file, version)
        fragments = dataset.get_fragments()
        chosen = range(len(fragments)) if pieces is None else pieces
        start = sum(each.count_rows() for each in fragments[: chosen.start])
        schema = dataset.schema
    paths = column_paths(schema, columns, str(file))
    # Nested columns come by their path, as columns of that name.
    flat: list[ColumnPath] = [None if path is None else [".".join(path)] for path in paths]
    names = list(dict.fromkeys(path[0] for path in flat if path))
    batches = _scanned(dataset, names, fragments[chosen.start : chosen.stop], file)
    yield from texts_of(validated(batches, flat), flat, columns, str(file), report, start)


def inspect_lance(
    file: InputFile,
    columns: Columns | None = None,
    pieces: range | None = None,
    version: int | None = None,
) -> int:
    """Look at the manifest of a Lance table.

    Args:
        file: The table's folder.
        columns: What it must have; None for anything.
        pieces: The fragments that are counted; None for all.
        version: Of the table; None for the newest.

    Returns:
        The number of its rows.

    Raises:
        ConfigError: The table lacks a column.
        InputError: It is no Lance table, damaged, or in a store that does not answer.
    """
    with _errors(file):
        dataset = _opened(file, version)
        fragments = dataset.get_fragments()
        chosen = fragments if pieces is None else fragments[pieces.start : pieces.stop]
        rows = sum(each.count_rows() for each in chosen)
        schema = dataset.schema
    if columns is not None:
        column_paths(schema, columns, str(file))
    return rows


def lance_pieces(file: InputFile, columns: Columns, most_bytes: int) -> tuple[int, list[range]]:
    """Divide a Lance table into neighbouring fragments.

    Args:
        file: The table's folder.
        columns: What is read of it.
        most_bytes: Bytes of these columns in a piece, about; a fragment is not divided.

    Returns:
        The table's newest version, and ranges of its fragments, all of them in their order.

    Raises:
        ConfigError: The table lacks a column.
        InputError: It is no Lance table, damaged, or in a store that does not answer.
    """
    with _errors(file):
        dataset = _opened(file, None)
        rows = [each.count_rows() for each in dataset.get_fragments()]
        schema = dataset.schema
    paths = column_paths(schema, columns, str(file))
    with _errors(file):
        stats: Any = dataset.stats.data_stats()
        sizes = {field.id: field.bytes_on_disk for field in stats.fields}
        ids = {one for path in paths if path for one in _leaves(dataset, path)}
    of_a_row = max(_LEAST_ROW, sum(sizes.get(one, 0) for one in ids) // max(sum(rows), 1))
    found = runs(np.array(rows, np.int64) * of_a_row, most_bytes)
    return int(dataset.version), [range(piece.start, piece.stop) for piece in found]


def _leaves(dataset: lance.LanceDataset, path: list[str]) -> list[int]:
    """The numbers of a column's field, and of all that is nested in it."""
    fields = dataset.lance_schema.fields()
    for name in path:
        [field] = [one for one in fields if one.name() == name]
        fields = field.children()
    found, left = [], [field]
    while left:
        one = left.pop()
        found.append(int(one.id()))
        left += one.children()
    return found


def _opened(file: InputFile, version: int | None) -> lance.LanceDataset:
    if not file.is_remote:
        if not file.can_be_read_again and str(file) == "-":
            raise InputError("Standard input is a pipe, and a Lance table a folder: name that.")
        _check_pipes(file)
        return lance.dataset(file.uri, version=version)
    place = _place(file)
    try:
        place.check()  # a store that is silent is waited for minutes by Lance
    except CacheError as error:
        raise InputError(str(error)) from None
    return lance.dataset(place.uri, version=version, storage_options=place.lance_options)


def _check_pipes(file: InputFile) -> None:
    """Refuse a table with a pipe or a device among its files: Lance would wait for who writes."""
    for folder, _, names in os.walk(file.uri):
        for path in (Path(folder, name) for name in names):
            if path.exists() and not path.is_file():
                raise InputError(f"{shown_name(file)} cannot be read as lance: {path} is no file.")


def _place(file: InputFile) -> Location:
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    plain = any(endpoint.startswith("http://") for endpoint in endpoints)  # pyarrow takes it, too
    return Location.of(file.uri, {"allow_http": "true"} if plain else None, argument="lance")


def _scanned(
    dataset: lance.LanceDataset, names: list[str], fragments: list[Any], file: InputFile
) -> Iterator[pa.RecordBatch]:
    """The rows, in calls of `_CALL_BYTES`: a scan reads fragments whole, whatever bounds it.

    Of a fragment with 500 MB of documents it took 700 MB, in calls a fifth of that.
    """
    sizes = np.array([_bytes_of(each) for each in fragments], np.int64)
    for run in runs(sizes, _CALL_BYTES):
        some = fragments[run]
        count = sum(each.count_rows() for each in some)
        step = max(1, _CALL_BYTES * count // max(1, int(sizes[run].sum())))
        for start in range(0, count, step):
            with _errors(file):
                yield from dataset.scanner(
                    columns=names,
                    fragments=some,
                    offset=start,
                    limit=step,
                    batch_size=BATCH_ROWS,
                    batch_size_bytes=BATCH_BYTES,
                    batch_readahead=_BATCHES_AHEAD,
                    fragment_readahead=_FRAGMENTS_AHEAD,
                    scan_in_order=True,
                ).to_batches()


def _bytes_of(fragment: Any) -> int:
    """Bytes of a fragment's files, with what is not wanted of them: as the manifest says."""
    sizes = [each.file_size_bytes for each in fragment.metadata.files]
    if None in sizes:  # older versions of Lance do not note it
        return int(fragment.physical_rows) * _UNKNOWN_ROW
    return sum(sizes)


@contextmanager
def _errors(file: InputFile) -> Iterator[None]:
    """Whatever Lance raises, panics of its native code included, as one kind of error."""

    def fail(error: BaseException) -> NoReturn:
        clean: Callable[[str], str] = _place(file).without_secrets if file.is_remote else str
        said = clean((str(error) or type(error).__name__).splitlines()[0])
        raise InputError(f"{shown_name(file)} cannot be read as lance: {said}") from (
            None if file.is_remote else error  # a traceback shows the cause as well
        )

    with failing_as(fail):
        yield
