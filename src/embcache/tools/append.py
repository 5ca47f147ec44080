"""Where rows that are copied go: the space that they belong in, and into it by chunks."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from embcache.errors import CacheError, ConfigError
from embcache.identity.prompt_rules import handling_of
from embcache.store import Database, Space
from embcache.store.schema import read_metadata, schema_layout, value_dim

_CHUNK_ROWS = 10_000
_CHUNK_BYTES = 128 * 2**20


def target_space(database: Database, schema: pa.Schema, source: object) -> Space:
    """The space of a cache that rows of another table, or of an exported file, belong in.

    Args:
        database: The cache.
        schema: Arrow schema of the rows, whose metadata says what they are of.
        source: Where the rows are from, for messages.

    Raises:
        ConfigError: They are of `LanceCache`.
        CacheError: The space is there, and holds something else; or it cannot be written.
    """
    metadata, layout = read_metadata(schema, str(source)), schema_layout(schema)
    if handling_of(metadata.identity).in_key == "none":
        raise ConfigError(
            f"{source} was written by LanceCache, whose keys are of the text alone: which model "
            "its vectors are of only its user knows, and rows of two models must not meet. Copy "
            "the directory instead, and move that table out of this cache; or name the other "
            "spaces to `transfer`."
        )
    found = database.space(metadata.identity, metadata.model, metadata.engine_version)
    stored = layout.texts[0] in schema.names
    space = Space(found.location, metadata, layout=layout, store_text=stored)
    dim = space.refresh().dim
    if dim is not None and (space.layout, dim) != (layout, value_dim(schema)):
        raise CacheError(
            f"{source} holds {layout.value}s of {value_dim(schema)} components and "
            f"{space.location} {space.layout.value}s of {dim}, under one identity. One of them is "
            "not what its metadata says: find out which, and move it away."
        )
    space.location.try_committing()  # all are found out before the first row is read
    return space


class Appender:
    """Commits rows in chunks of about 10,000.

    Args:
        commit: Commits a chunk in one transaction; returns how many of its rows were not there.

    Attributes:
        added: The sum of what `commit` returned.
    """

    def __init__(self, commit: Callable[[pa.Table], int]) -> None:
        self._commit = commit
        self._pending: list[pa.RecordBatch] = []
        self.added = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows, with key, value, checksum and any other columns of the space.

        Raises:
            CacheError: LanceDB refused a chunk.
        """
        self._pending.append(batch)
        if (
            sum(part.num_rows for part in self._pending) >= _CHUNK_ROWS
            or sum(part.nbytes for part in self._pending) >= _CHUNK_BYTES
        ):
            self.flush()

    def flush(self) -> None:
        """Commit what was taken.

        Raises:
            CacheError: LanceDB refused.
        """
        if not self._pending:
            return
        # A batch lacks the columns that could not be read: null in its rows.
        rows = pa.concat_tables(
            [pa.Table.from_batches([part]) for part in self._pending], promote_options="default"
        )
        self._pending = []
        self.added += self._commit(rows)
