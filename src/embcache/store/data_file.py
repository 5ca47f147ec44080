"""A data file read by itself: without a manifest, and past what of it cannot be read.

Lance's data files carry the Arrow schema of their table, metadata included, so that one which no
readable manifest names still says what it is of. Lance fails a whole read for one byte that it
cannot decode; here what fails is halved until it is single rows, column by column, so that a
damaged text costs no vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileReader

from embcache.identity.keys import KEY_BYTES
from embcache.store.folder import Folder
from embcache.store.lance_errors import READ_FIX, is_of_lance, lance_errors
from embcache.store.schema import (
    SpaceMetadata,
    check_columns,
    read_metadata,
    schema_layout,
    value_dim,
)
from embcache.store.verify import Verified, verify
from embcache.store.watch import reading

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20
_FAILURES = 20_000  # a read takes a tenth of a millisecond; after so many, rows fail by hundreds
_COARSE_ROWS = 256


class DataFile:
    """The rows of one data file, deleted ones included: deletions stand elsewhere.

    Args:
        path: The file.

    Attributes:
        path: As given.
        schema: Its Arrow schema, with the table's metadata.
        metadata: What the table that it was written for says about itself.
        layout: Whether it holds vectors or scores.

    Raises:
        CacheError: Lance cannot open it, or it is no space's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reading(path)
        # Not Location.of, which refuses names as a user's: a damaged manifest may name anything.
        with lance_errors("Opening", Folder(str(path)), READ_FIX):
            reader = LanceFileReader(str(path))
            self.schema: pa.Schema = reader.metadata().schema
            self.metadata: SpaceMetadata = read_metadata(self.schema, str(path))
            self.layout = schema_layout(self.schema)
            # A damaged count may be anything, and a key alone takes its bytes.
            self._count = min(int(reader.num_rows()), path.stat().st_size // KEY_BYTES)
        check_columns(self.schema, self.metadata, str(path))
        self._readers: dict[tuple[str, ...], LanceFileReader] = {}
        self._failures = 0

    def __len__(self) -> int:
        """Number of rows, those that cannot be read included."""
        return self._count

    @property
    def dim(self) -> int:
        """Components of its vectors; 1 for scores."""
        return value_dim(self.schema)

    def read(self, live: npt.NDArray[np.bool_] | None = None) -> Iterator[Verified]:
        """Rows that can be read, each checked with its own key.

        Args:
            live: `(len(self),) bool`, False for rows to leave out; None for all.

        Returns:
            Batches with all columns of the file; those beside key, value and checksum are null
            where they cannot be read.
        """
        reading(self.path)
        step = max(1, min(_BATCH_ROWS, _BATCH_BYTES // (4 * self.dim)))
        for start in range(0, self._count, step):
            for at, rows in self._rows(start, min(step, self._count - start)):
                if live is not None:
                    rows = rows.filter(pa.array(live[at : at + rows.num_rows]))
                if rows.num_rows:
                    yield verify(rows.combine_chunks().to_batches()[0], self.layout)

    def _rows(self, start: int, count: int) -> Iterator[tuple[int, pa.Table]]:
        if (whole := self._try(self.schema.names, start, count)) is not None:
            yield start, whole
            return
        needed = ["key", self.layout.value, "checksum"]
        for at, values in self._pieces(needed, start, count):
            yield at, self._with_rest(values, at)

    def _with_rest(self, rows: pa.Table, start: int) -> pa.Table:
        """The rows with all other columns, null where these cannot be read."""
        columns = [
            rows.column(field.name)
            if field.name in rows.column_names
            else self._column(field, start, rows.num_rows)
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _column(self, field: pa.Field, start: int, count: int) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        done = start
        for at, piece in self._pieces([field.name], start, count):
            chunks += [pa.nulls(at - done, field.type), *piece.column(0).chunks]
            done = at + piece.num_rows
        chunks.append(pa.nulls(start + count - done, field.type))
        return pa.chunked_array(chunks, field.type)

    def _pieces(
        self, names: Sequence[str], start: int, count: int
    ) -> Iterator[tuple[int, pa.Table]]:
        """What can be read of some rows, as runs of them, each with the first one's number."""
        if (piece := self._try(names, start, count)) is not None:
            yield start, piece
            return
        self._failures += 1
        if count > (1 if self._failures < _FAILURES else _COARSE_ROWS):
            half = count // 2
            yield from self._pieces(names, start, half)
            yield from self._pieces(names, start + half, count - half)

    def _try(self, names: Sequence[str], start: int, count: int) -> pa.Table | None:
        """Some columns of some rows; None where Lance cannot read them.

        Nothing is said of the error: what a file lost is counted by who reads it.
        """
        try:
            rows: pa.Table = self._reader(names).read_range(start, count).to_table()
            rows.validate(full=True)  # a flipped offset, or bytes that are no UTF-8
        except BaseException as error:
            if not is_of_lance(error):
                raise
            return None
        return rows if rows.num_rows == count else None

    def _reader(self, names: Sequence[str]) -> LanceFileReader:
        key = tuple(names)
        if key not in self._readers:
            self._readers[key] = LanceFileReader(str(self.path), columns=list(names))
        return self._readers[key]
