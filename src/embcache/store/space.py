"""One space: the rows of one identity, in one Lance table."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError
from embcache.identity import keys as key_bytes
from embcache.identity.keys import Keys
from embcache.store.index import KeyIndex, KeyParts, Positions, UnsortedKeys
from embcache.store.location import READ_FIX, WRITE_FIX, lance_errors
from embcache.store.reader import Narrow, Reader
from embcache.store.rows import Rows, batch_keys, conform
from embcache.store.schema import (
    VECTORS,
    Layout,
    SpaceMetadata,
    read_metadata,
    schema_layout,
    space_schema,
    value_dim,
)

if TYPE_CHECKING:
    import lancedb

logger = logging.getLogger(__name__)

_SCAN_ROWS = 4096
_DELETE_KEYS = 500  # keys in one delete statement


class Space:
    """Lookup, read, append and delete in one table, which need not exist yet.

    Reading goes through pylance, which reads at a memory map's speed; creating, appending and
    deleting through LanceDB, which commits safely beside other processes.

    Args:
        path: Folder of the table, `<cache>/<name>.lance`.
        metadata: What a new table says about itself; an existing one must say the same identity.
        layout: Whether a new table holds vectors or scores.
        store_text: Whether new rows carry their texts.
    """

    def __init__(
        self,
        path: Path,
        metadata: SpaceMetadata,
        *,
        layout: Layout = VECTORS,
        store_text: bool = True,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self._layout = layout
        self._store_text = store_text
        self._engine_version: str | None = None
        self._dataset: lance.LanceDataset | None = None
        self._reader: Reader | None = None
        self._index = KeyParts()
        self._fragments: list[tuple[int, int]] = []

    @property
    def name(self) -> str:
        """The table's name."""
        return self.path.name.removesuffix(".lance")

    @property
    def dim(self) -> int | None:
        """Number of components of its vectors (1 for scores); None before the first row."""
        return None if self._dataset is None else value_dim(self._dataset.schema)

    @property
    def version(self) -> int | None:
        """The table's version that the last `refresh` saw; None before the first row."""
        return None if self._dataset is None else int(self._dataset.version)

    @property
    def engine_version(self) -> str | None:
        """Engine package and version of the first writer; None before the first row."""
        return self._engine_version

    def __len__(self) -> int:
        """Rows seen by the last `refresh`."""
        return len(self._index)

    def refresh(self) -> None:
        """See what was committed since the last call, by whatever process.

        Raises:
            CacheFormatError: The table is of a newer format, or no space of embcache.
            CacheError: It is of another identity, or cannot be read.
        """
        if not table_exists(self.path):
            self._dataset, self._reader, self._index, self._fragments = None, None, KeyParts(), []
            self._engine_version = None
            return
        with lance_errors("Opening", self.path, READ_FIX):
            if self._dataset is not None and self._dataset.latest_version == self._dataset.version:
                return
            dataset = lance.dataset(str(self.path))
        self._engine_version = self._check_identity(dataset.schema).engine_version
        with lance_errors("Reading the keys of", self.path, READ_FIX):
            self._reindex(dataset)
            self._reader = Reader(dataset)
        self._dataset = dataset

    @property
    def layout(self) -> Layout:
        """Whether it holds vectors or scores."""
        return self._layout if self._dataset is None else schema_layout(self._dataset.schema)

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns; none before the first row."""
        return [] if self._dataset is None else list(self._dataset.schema.names)

    def keys(self) -> Keys:
        """All keys in scan order, `(len(self), 2) uint64`: row i lies at position i."""
        return self._index.keys()

    def rows_at(self, positions: Positions, columns: list[str]) -> list[dict[str, Any]]:
        """Some columns of a few rows, in the order of the positions; rows are not checked.

        Raises:
            CacheError: Lance cannot read the table.
        """
        if self._dataset is None or not len(positions):
            return []
        with lance_errors("Reading rows of", self.path, READ_FIX):
            rows: list[dict[str, Any]] = self._dataset.take(positions, columns=columns).to_pylist()
            return rows

    def scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Some columns and `_rowid` of all rows, in scan order, by batches; rows are not checked.

        Raises:
            CacheError: Lance cannot read the table.
        """
        if self._dataset is None:
            return
        with lance_errors("Scanning", self.path, READ_FIX):
            yield from self._dataset.scanner(
                columns=columns, with_row_id=True, batch_size=_SCAN_ROWS, scan_in_order=True
            ).to_batches()

    def find(self, keys: Keys) -> Positions:
        """Where each key's row lies, `(len(keys),) int64`, -1 for a miss; for `read`."""
        return self._index.find(keys)

    def read(
        self,
        positions: Positions,
        keys: Keys,
        out: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        narrow: Narrow | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Copy vectors into `out`, see `Reader.read`; positions are of the last `refresh`.

        Raises:
            CacheError: Lance cannot read the table (a truncated file, say).
        """
        if not len(positions):
            return np.zeros(0, bool)
        if self._reader is None:
            raise CacheError(f"{self.path} has no rows to read; call refresh() first.")
        with lance_errors("Reading vectors from", self.path, READ_FIX):
            return self._reader.read(positions, keys, out, rows, narrow)

    def append(self, rows: Rows) -> None:
        """Commit rows in one transaction: after a kill all of them are there, or none.

        Raises:
            CacheError: The vectors have another dimension than the space, or LanceDB refused.
        """
        self._commit(
            rows.values.shape[1],
            lambda schema: rows.to_arrow(schema, store_text=self._store_text),
        )

    def append_arrow(self, rows: pa.Table, dim: int) -> None:
        """Commit rows of another table as they are, with key, value and checksum.

        Args:
            rows: Columns that the space has not are left out; those that they have not are null.
            dim: Components of their vectors; 1 for scores.

        Raises:
            CacheError: As `append`.
        """
        self._commit(dim, lambda schema: conform(rows, schema))

    def _commit(self, dim: int, rows: Callable[[pa.Schema], pa.Table]) -> None:
        with lance_errors("Writing to", self.path, WRITE_FIX):
            table = self._open_or_create(dim)
            schema = table.schema
            self._check_identity(schema)
            if value_dim(schema) != dim:
                raise CacheError(
                    f"{self.path} holds vectors of {value_dim(schema)} components, and those to be "
                    f"added have {dim}. One identity cannot have two dimensions: the table is not "
                    "what its metadata says. Move the folder away; its texts are encoded again."
                )
            table.add(rows(schema))

    def delete(self, keys: Keys) -> None:
        """Delete every row of these keys, in as few transactions as it takes."""
        with lance_errors("Deleting rows from", self.path, WRITE_FIX):
            table = self._connect().open_table(self.name)
            raw = key_bytes.to_bytes(keys)
            literals = [f"X'{raw[at : at + 16].hex()}'" for at in range(0, len(raw), 16)]
            for at in range(0, len(literals), _DELETE_KEYS):
                table.delete(f"key IN ({', '.join(literals[at : at + _DELETE_KEYS])})")

    def _connect(self, folder: Path | None = None) -> lancedb.DBConnection:
        import lancedb  # takes a second, and a warm run writes nothing

        # An interval of zero: always the latest version, whatever other processes do.
        where = str(folder or self.path.parent)
        return lancedb.connect(where, read_consistency_interval=timedelta(0))

    def _open_or_create(self, dim: int) -> lancedb.table.Table:
        if not table_exists(self.path):
            self._create(dim)
        return self._connect().open_table(self.name)

    def _create(self, dim: int) -> None:
        """Make the table, unless another process does: what that one wrote stays.

        Elsewhere first, and then moved here in one step: where two processes create a table at
        once, the second creation may commit as an overwrite (Lance 13), and take the rows with it
        that the first has written by then.
        """
        schema = space_schema(self._layout, dim, self.metadata, store_text=self._store_text)
        options = {"new_table_enable_stable_row_ids": "true"}
        parent = self.path.parent
        with tempfile.TemporaryDirectory(prefix=".creating-", dir=parent) as folder:
            made = self._connect(Path(folder))
            made.create_table(self.name, schema=schema, storage_options=options)
            with suppress(OSError):  # a table is there already, or what a killed creation left
                (Path(folder) / self.path.name).rename(self.path)
        if not table_exists(self.path):
            self._connect().create_table(
                self.name, schema=schema, storage_options=options, exist_ok=True
            )

    def _check_identity(self, schema: pa.Schema) -> SpaceMetadata:
        metadata = read_metadata(schema, str(self.path))
        found = metadata.identity
        if found != self.metadata.identity:
            raise CacheError(
                f"{self.path} holds another identity than its name says.\n"
                f"  there:  {found.to_json()}\n  wanted: {self.metadata.identity.to_json()}\n"
                "Was it renamed or copied by hand? Move the folder away."
            )
        return metadata

    def _reindex(self, dataset: lance.LanceDataset) -> None:
        """Index new fragments only, where the old ones are all still there, unchanged."""
        fragments = dataset.get_fragments()
        shape = [(f.fragment_id, f.metadata.num_rows) for f in fragments]
        known = len(self._fragments)
        if self._fragments and shape[:known] == self._fragments:
            index, fresh = self._index, fragments[known:]
        else:
            index, fresh = KeyParts(), fragments
        self._index = index.extended(_index_keys(dataset, fresh, len(index)))
        self._fragments = shape


def table_exists(path: Path) -> bool:
    """Whether a table was ever committed there; a kill during creation leaves less."""
    return any((path / "_versions").glob("*.manifest"))


def _index_keys(
    dataset: lance.LanceDataset, fragments: list[lance.LanceFragment], first: int
) -> KeyIndex:
    """The keys of some fragments, the first of which begins at scan position `first`."""
    keys = UnsortedKeys(sum(fragment.metadata.num_rows for fragment in fragments))
    if fragments:
        # Batch by batch: a table of all keys would be as large as the index.
        scanner = dataset.scanner(
            columns=["key"],
            with_row_id=True,
            fragments=fragments,
            scan_in_order=True,
            batch_readahead=2,  # as fast as the defaults, for a third of their memory
            fragment_readahead=1,
        )
        for batch in scanner.to_batches():
            keys.add(batch_keys(batch), batch.column("_rowid").to_numpy())
    return keys.index(first)
