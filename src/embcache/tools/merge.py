"""Merge two caches: what one of them computed, the other need not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from embcache.errors import CacheError, ConfigError
from embcache.identity.prompt_rules import handling_of
from embcache.store import Database, Location, Reader, Space
from embcache.store.schema import read_metadata, schema_layout, value_dim
from embcache.tools.verified_rows import read_rows, survey

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 10_000
_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class SpaceMerge:
    """What became of one space's rows.

    Attributes:
        name: The source's table.
        rows: Rows of the source.
        added: Rows that the target had not, and has now.
        present: Rows whose key the target had before.
        duplicates: Rows whose key an earlier row of the source has.
        lost: Rows that are damaged, or cannot be read, or whose key is not that of their text.
            They are not in the target.
    """

    name: str
    rows: int
    added: int
    present: int
    duplicates: int
    lost: int

    def __str__(self) -> str:
        parts = [f"{self.added:,} of {self.rows:,} rows added", f"{self.present:,} there already"]
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates")
        if self.lost:
            parts.append(f"{self.lost:,} damaged or unreadable, left out")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class MergeReport:
    """What `merge_caches` did.

    Attributes:
        spaces: One entry a space of the source, by name.
        failed: Spaces of the source that could not be opened at all, each with its error.
    """

    spaces: tuple[SpaceMerge, ...]
    failed: tuple[str, ...] = ()

    @property
    def added(self) -> int:
        """Rows added, over all spaces."""
        return sum(space.added for space in self.spaces)

    @property
    def lost(self) -> int:
        """Rows left out because they are damaged or cannot be read, over all spaces."""
        return sum(space.lost for space in self.spaces)

    def __str__(self) -> str:
        lines = [str(space) for space in self.spaces]
        lines += [f"left out: {error}" for error in self.failed]
        return "\n".join(lines) or "The other cache has no spaces."


def merge_caches(
    source: str | os.PathLike[str] | Location,
    target: str | os.PathLike[str] | Location,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> MergeReport:
    """Add to a cache what another one has and it has not; nothing is encoded again.

    Rows are checked and copied with all their columns, `created_at` included, in chunks of about
    10,000, each one transaction: after a kill, run it again. Where both caches have a key, the
    target's row stays, so running it twice changes nothing. Both may be in use meanwhile.

    Args:
        source: The cache to read from; it is not changed. One with damaged files will do: what can
            be read of them is merged.
        target: The cache to add to; made if need be.
        storage_options: What the stores of URLs need to be opened, of both; a Location has its own.

    Returns:
        Counts a space. Memory: a chunk, and about 50 bytes a row of the largest source space.

    Raises:
        ConfigError: Both are the same place, or the source holds a table of `LanceCache`,
            whose keys say nothing of the model.
        CacheError: There is no source; the target cannot be written; or one
            identity has vectors of different dimensions, or scores, in the two. Then nothing was
            merged.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """
    reading = Database(source, storage_options, writable=False)
    adding_to = Location.of(target, storage_options)
    if reading.location.same_as(adding_to):
        raise ConfigError(f"{reading.location} cannot be merged with itself. Give another cache.")
    spaces, errors = reading.readable_spaces()
    for error in errors:
        logger.warning("A space is left out: %s", error)
    writing = Database(adding_to, writable=True)
    readers = [space.open() for space in spaces]
    pairs = [(reader, target_space(writing, reader.schema, reader.location)) for reader in readers]
    merged = tuple(_merge(reader, space) for reader, space in pairs)
    return MergeReport(merged, tuple(map(str, errors)))


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
            "the directory instead, and move that table out of this cache."
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


def _merge(reader: Reader, space: Space) -> SpaceMerge:
    found, name = survey(reader), reader.location.name
    first = found.first
    missing = space.refresh().find(found.keys[first]) < 0
    wanted = found.row_ids[first][missing]
    appender = Appender(partial(space.add_arrow, dim=reader.dim))
    own = [column for column in reader.columns if column not in ("key", "checksum")]
    copied = 0
    for batch in read_rows(reader, wanted, own):
        copied += batch.num_rows
        appender.add(batch)
    appender.flush()
    lost = found.rows - len(found.keys) + len(wanted) - copied
    if lost:
        logger.warning(
            "%d rows of %s are damaged or cannot be read; they are left out, and encoded again "
            "when they are needed.",
            lost,
            name,
        )
    return SpaceMerge(
        name,
        rows=found.rows,
        added=appender.added,
        present=int((~missing).sum()) + copied - appender.added,
        duplicates=int((~first).sum()),
        lost=lost,
    )


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
