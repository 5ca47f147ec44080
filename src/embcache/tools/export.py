"""Export a space to a file that other tools read."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embcache.errors import ConfigError
from embcache.identity.home import user_path
from embcache.store import Layout, RowFilter, Space
from embcache.store.files import check_new, new_files
from embcache.store.schema import schema_layout, value_dim
from embcache.store.verify import batch_values
from embcache.tools.verified_rows import read_rows, survey

logger = logging.getLogger(__name__)

ExportDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class ExportReport:
    """What `export_space` wrote.

    Attributes:
        files: The files.
        rows: Rows in them.
        left_out: Rows that are damaged, or cannot be read, or whose key is not that of their text.
        size: Bytes of the files.
    """

    files: tuple[Path, ...]
    rows: int
    left_out: int
    size: int

    def __str__(self) -> str:
        names = ", ".join(str(path) for path in self.files)
        lost = f"; {self.left_out:,} damaged or unreadable rows left out" if self.left_out else ""
        return f"{names}: {self.rows:,} rows, {self.size / 1e6:,.1f} MB{lost}"


def export_space(
    space: Space,
    target: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    contains: str | None = None,
    dtype: ExportDtype = "float32",
    overwrite: bool = False,
) -> ExportReport:
    """Write a space's rows, each checked, to one file; a key that is there twice, once.

    Args:
        space: The space.
        target: A file name that ends in `.parquet` or `.arrow` (Arrow's IPC file format), for all
            columns and the schema metadata; or in `.npy` for the vectors alone, `(n, dim)`, or
            scores, `(n,)`, with `<name>.texts.jsonl` beside it: a line a row, in the same order.
        prompt: Only rows with this prompt.
        contains: Only rows with this in their text (in query or document, for scores).
        dtype: float16 halves the file; its vectors are not the engine's bits any more, so such a
            file cannot be imported.
        overwrite: Whether to replace a file.

    Returns:
        Counts. Memory: a batch, and about 50 bytes a row.

    Raises:
        ConfigError: The target's ending, or `dtype`, is unknown; it exists; the space has no such
            column; a value is too large for float16; there is no space.
        CacheError: The space cannot be read, or the file not be written.
    """
    reader, file = space.open(), user_path(target, "target")
    names = [file] if file.suffix != ".npy" else [file, file.with_suffix(".texts.jsonl")]
    _check_arguments(names, dtype, overwrite)
    chosen = RowFilter(prompt, contains)
    chosen.columns(reader.schema)
    found = survey(reader)
    wanted = found.row_ids[found.first]
    columns = [name for name in reader.columns if name not in ("key", "checksum")]
    rows = copied = 0
    with new_files(names) as temporary:
        writer = _KINDS[file.suffix](temporary, _schema(reader.schema, dtype))
        for batch in read_rows(reader, wanted, columns):
            copied += batch.num_rows
            batch = chosen.apply(batch)
            rows += batch.num_rows
            if batch.num_rows:
                writer.write(_conform(batch, writer.schema, dtype))
        writer.close()
    left_out = found.rows - len(found.keys) + len(wanted) - copied
    if left_out:
        logger.warning("%d rows of %s are damaged or cannot be read.", left_out, space.location)
    return ExportReport(tuple(names), rows, left_out, sum(name.stat().st_size for name in names))


class _Writer(ABC):
    """Writes batches to files of one format."""

    def __init__(self, files: list[Path], schema: pa.Schema) -> None:
        self.schema = schema

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows of the schema."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""


class _Parquet(_Writer):
    def __init__(self, files: list[Path], schema: pa.Schema) -> None:
        super().__init__(files, schema)
        self._writer = pq.ParquetWriter(str(files[0]), schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Ipc(_Writer):
    def __init__(self, files: list[Path], schema: pa.Schema) -> None:
        super().__init__(files, schema)
        self._writer = pa.ipc.new_file(str(files[0]), schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Numpy(_Writer):
    """The header is written twice: its row count is known at the end, and its size stays."""

    def __init__(self, files: list[Path], schema: pa.Schema) -> None:
        super().__init__(files, schema)
        self._layout = schema_layout(schema)
        kind = schema.field(self._layout.value).type
        self._dtype = np.dtype("<f2" if "halffloat" in str(kind) else "<f4")
        self._dim = value_dim(schema)
        self._rows = 0
        self._vectors = files[0].open("wb")
        self._write_header(rows=2**62)  # no number that will come is longer
        self._size = self._vectors.tell()
        self._texts: TextIO = files[1].open("w", encoding="utf-8")

    def write(self, batch: pa.RecordBatch) -> None:
        values = batch.column(self._layout.value)
        flat = values if self._layout.value == "score" else values.flatten()
        self._vectors.write(np.ascontiguousarray(flat.to_numpy(zero_copy_only=False)).tobytes())
        names = [name for name in self._layout.texts if name in batch.schema.names]
        columns = [batch.column(name).to_pylist() for name in names]
        for row in range(batch.num_rows):
            line = {name: column[row] for name, column in zip(names, columns, strict=True)}
            self._texts.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._rows += batch.num_rows

    def close(self) -> None:
        self._vectors.seek(0)
        self._write_header(self._rows)
        if self._vectors.tell() != self._size:
            raise RuntimeError("NumPy's header has another size than the one it replaces")
        self._vectors.close()
        self._texts.close()

    def _write_header(self, rows: int) -> None:
        shape = (rows,) if self._layout.value == "score" else (rows, self._dim)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._vectors, header)  # type: ignore[no-untyped-call]


_KINDS: dict[str, type[_Writer]] = {".parquet": _Parquet, ".arrow": _Ipc, ".npy": _Numpy}
_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


def _check_arguments(files: list[Path], dtype: str, overwrite: bool) -> None:
    if files[0].suffix not in _KINDS:
        raise ConfigError(
            f"{files[0]} ends in none of {', '.join(_KINDS)}: give one of these, it is the format."
        )
    if dtype not in _TYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown. Use one of {', '.join(_TYPES)}.")
    check_new(files, overwrite)


def _schema(schema: pa.Schema, dtype: str) -> pa.Schema:
    """The table's columns and metadata, values in another dtype."""
    value = schema_layout(schema).value
    inner = _TYPES[dtype]
    kind = inner if value == "score" else pa.list_(inner, value_dim(schema))
    at = schema.get_field_index(value)
    return schema.set(at, pa.field(value, kind, nullable=False))


def _conform(batch: pa.RecordBatch, schema: pa.Schema, dtype: str) -> pa.RecordBatch:
    """The rows in the file's columns; null where a column could not be read."""
    layout = schema_layout(schema)
    columns = []
    for field in schema:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
        elif field.name == layout.value and dtype == "float16":
            columns.append(_halves(batch, layout, field.type))
        else:
            columns.append(batch.column(field.name))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _halves(batch: pa.RecordBatch, layout: Layout, kind: pa.DataType) -> pa.Array:
    values = batch_values(batch, layout)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ConfigError(
            f"dtype='float16': {float(np.abs(values).max()):g} is too large for it (65504 is the "
            "most). Export float32."
        )
    flat = pa.array(halves.reshape(-1))
    return (
        flat if layout.value == "score" else pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    )
