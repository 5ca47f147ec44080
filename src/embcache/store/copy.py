"""Copying rows as they are, with all their columns: out of a table, and into a space."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from embcache.errors import CacheError
from embcache.store.index import unique_keys
from embcache.store.rows import batch_keys
from embcache.store.space import Space
from embcache.store.survey import RowIds, read_fragment

logger = logging.getLogger(__name__)

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
