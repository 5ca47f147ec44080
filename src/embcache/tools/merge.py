"""Merge two caches: what one of them computed, the other need not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from embcache.errors import CacheError, ConfigError
from embcache.store.database import Database, SpaceInfo
from embcache.store.index import unique_keys
from embcache.store.rows import batch_keys
from embcache.store.schema import schema_layout, value_dim
from embcache.store.space import Space
from embcache.store.verify import BY_DIRECTORY
from embcache.tools.survey import RowIds, open_dataset, read_fragment, survey

logger = logging.getLogger(__name__)


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


def merge_caches(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> MergeReport:
    """Add to a cache what another one has and it has not; nothing is encoded again.

    Rows are checked and copied with all their columns, `created_at` included, in chunks of about
    10,000, each one transaction: after a kill, run it again. Where both caches have a key, the
    target's row stays, so running it twice changes nothing. Both may be in use meanwhile.

    Args:
        source: The cache to read from; it is not changed. One with damaged files will do: what can
            be read of them is merged.
        target: The cache to add to; made if need be.

    Returns:
        Counts a space. Memory: a chunk, and about 50 bytes a row of the largest source space.

    Raises:
        ConfigError: Both are the same directory, or the source holds a table of `LanceCache`,
            whose keys say nothing of the model.
        CacheError: There is no source; the target cannot be written; or one
            identity has vectors of different dimensions, or scores, in the two. Then nothing was
            merged.
    """
    reading = Database(source, writable=False)
    if not reading.path.is_dir():
        raise CacheError(f"{reading.path} does not exist. Give the directory of a cache.")
    if reading.path.resolve() == Path(target).expanduser().resolve():
        raise ConfigError(f"{reading.path} cannot be merged with itself. Give another cache.")
    spaces, failed = _openable(reading)
    writing = Database(target, writable=True)
    pairs = [(info, *_pair(info, writing)) for info in spaces]
    merged = tuple(_merge(info, dataset, space) for info, dataset, space in pairs)
    return MergeReport(merged, failed)


def target_space(database: Database, info: SpaceInfo, schema: pa.Schema) -> Space:
    """The space of a cache that rows of another one belong in, made from their metadata.

    Args:
        database: The cache.
        info: Where the rows are from, and what that says about itself.
        schema: Its Arrow schema.

    Raises:
        ConfigError: They are of `LanceCache`.
        CacheError: The space is there, and holds something else.
    """
    metadata, layout = info.metadata, schema_layout(schema)
    if metadata.identity.prompt_handling == BY_DIRECTORY:
        raise ConfigError(
            f"{info.path} was written by LanceCache, whose keys are of the text alone: which model "
            "its vectors are of only its user knows, and rows of two models must not meet. Copy "
            "the directory instead, and move that table out of this cache."
        )
    path = database.space(metadata.identity, metadata.model, metadata.engine_version).path
    space = Space(path, metadata, layout=layout, store_text=layout.texts[0] in schema.names)
    space.refresh()
    if space.dim is not None and (space.layout, space.dim) != (layout, value_dim(schema)):
        raise CacheError(
            f"{info.path} holds {layout.value}s of {value_dim(schema)} components and {space.path} "
            f"{space.layout.value}s of {space.dim}, under one identity. One of them is not what "
            "its metadata says: find out which, and move it away."
        )
    return space


def _openable(database: Database) -> tuple[list[SpaceInfo], tuple[str, ...]]:
    spaces: list[SpaceInfo] = []
    failed: list[str] = []
    for folder in sorted(database.path.glob("*.lance")):
        try:
            spaces += database.spaces(folder.name)
        except CacheError as error:
            logger.warning("%s is left out: %s", folder, error)
            failed.append(str(error))
    return spaces, tuple(failed)


def _pair(info: SpaceInfo, writing: Database) -> tuple[lance.LanceDataset, Space]:
    dataset = open_dataset(info.path)
    return dataset, target_space(writing, info, dataset.schema)


def _merge(info: SpaceInfo, dataset: lance.LanceDataset, space: Space) -> SpaceMerge:
    found, name = survey(dataset, info.metadata.identity), info.path.name
    first = found.first
    missing = space.find(found.keys[first]) < 0
    wanted = found.row_ids[first][missing]
    appender = Appender(space, value_dim(dataset.schema))
    own = [column for column in dataset.schema.names if column not in ("key", "checksum")]
    copied = 0
    for batch in read_rows(dataset, wanted, own):
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
        name.removesuffix(".lance"),
        rows=found.rows,
        added=appender.added,
        present=int((~missing).sum()) + copied - appender.added,
        duplicates=int((~first).sum()),
        lost=lost,
    )


_CHUNK_ROWS = 10_000
_CHUNK_BYTES = 128 * 2**20


def read_rows(
    dataset: lance.LanceDataset, wanted: RowIds, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Read rows by batches, in scan order; damaged ones are left out.

    What of a fragment cannot be read is left out with a warning. If it can be read without its
    texts and notes, its rows come without these columns.

    Args:
        dataset: A space, pinned to the version that `wanted` is of.
        wanted: `(n,) uint64`, row ids.
        columns: Columns to read beside key, value and checksum.
    """
    wanted = np.sort(wanted)
    for fragment in dataset.get_fragments():
        done = np.empty(0, np.uint64)
        for names in ([*columns], []) if columns else ([],):
            try:
                for part in read_fragment(dataset, fragment, names):
                    chosen = ~part.damaged & _among(part.row_ids, wanted)
                    chosen &= ~np.isin(part.row_ids, done)
                    if chosen.any():
                        done = np.append(done, part.row_ids[chosen])
                        batch = part.batch.drop_columns(["_rowid"])
                        yield batch if chosen.all() else batch.filter(pa.array(chosen))
                break
            except CacheError as error:
                logger.warning(
                    "%s: %s cannot be read, %s",
                    dataset.uri,
                    "Some columns" if names else "Rows",
                    error,
                )


class Appender:
    """Appends rows to a space in chunks of about 10,000, each one transaction.

    Rows whose key the space has by then, or an earlier row of the chunk, are left out.

    Args:
        space: Where they go.
        dim: Number of components of their vectors; 1 for scores.

    Attributes:
        added: Rows that were committed.
    """

    def __init__(self, space: Space, dim: int) -> None:
        self._space = space
        self._dim = dim
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
        keys = np.concatenate([batch_keys(part) for part in self._pending])
        first, _ = unique_keys(keys)
        self._space.refresh()
        new = first[self._space.find(keys[first]) < 0]
        if len(new):
            # A batch lacks the columns that could not be read: null in its rows.
            rows = pa.concat_tables(
                [pa.Table.from_batches([part]) for part in self._pending], promote_options="default"
            )
            self._space.append_arrow(rows.take(pa.array(new)), self._dim)
        self.added += len(new)
        self._pending = []


def _among(row_ids: RowIds, wanted: RowIds) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which row ids are in a sorted array."""
    spots = np.searchsorted(wanted, row_ids)
    inside = spots < len(wanted)
    inside[inside] = wanted[spots[inside]] == row_ids[inside]
    return inside
