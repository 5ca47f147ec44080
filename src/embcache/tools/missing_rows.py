"""Which rows of a table another one lacks, and these alone, read and checked.

A source may lie on an object store, where bytes cost time and money. So first all keys are read,
16 bytes a row; then of the rows whose keys are missing what a filter asks for; and of those that
are left all columns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError, DamagedSpaceError
from embcache.identity.keys import Keys
from embcache.store import Reader, RowFilter, Verified
from embcache.store.index import Positions, run_starts, sorting_order
from embcache.store.verify import batch_keys, key_fits
from embcache.tools.verified_rows import files_of

logger = logging.getLogger(__name__)

_AHEAD = 2  # batches: an object store takes its time to begin with each
_AT = "_position"  # a column for the time of filtering
_NO_KEYS = np.empty((0, 2), np.uint64)


@dataclass(frozen=True)
class TableKeys:
    """All keys of one version of a table that can be read. Memory: 32 bytes a row.

    Attributes:
        distinct: `(d, 2) uint64`, each key once, sorted.
        positions: `(n,) int64`, where the rows lie, in the order of their keys; of equal keys, the
            row that was committed first comes first.
        starts: `(d,) int64`, where in `positions` the rows of each distinct key begin.
        rows: Rows of the table, those that cannot be read included.
    """

    distinct: Keys
    positions: Positions
    starts: Positions
    rows: int

    @property
    def unreadable(self) -> int:
        """Rows whose keys cannot be read."""
        return self.rows - len(self.positions)

    @property
    def duplicates(self) -> int:
        """Rows whose key an earlier row has."""
        return len(self.positions) - len(self.distinct)

    def turn(self, wanted: Positions, number: int) -> tuple[Positions, Positions]:
        """The rows of some keys that come at one turn: the first ones, the first duplicates.

        Args:
            wanted: `(w,) int64`, numbers of distinct keys.
            number: Which turn, from 0.

        Returns:
            `(m,) int64` each, by position: numbers of those keys that have so many rows, and where
            the rows lie.
        """
        at = self.starts[wanted] + number
        ends = np.append(self.starts[1:], len(self.positions))[wanted]
        there = at < ends
        positions, owners = self.positions[at[there]], wanted[there]
        order = np.argsort(positions)
        return owners[order], positions[order]


def read_keys(reader: Reader) -> TableKeys:
    """Read all keys of a table; those of a damaged file are left out with a warning.

    Raises:
        CacheError: The table cannot be read for what is no damage (no permission, say).
    """
    parts: list[tuple[Keys, npt.NDArray[np.uint64], Positions]] = []
    for fragment, start in zip(reader.fragments, reader.starts.tolist(), strict=False):
        try:
            for batch in reader.keys_of(fragment):
                stop = start + batch.num_rows
                row_ids = batch.column("_rowid").to_numpy()
                parts.append((batch_keys(batch), row_ids, np.arange(start, stop)))
                start = stop
        except DamagedSpaceError as error:
            logger.warning("%s: Rows cannot be read, %s", reader.location, error)
    keys = np.concatenate([_NO_KEYS, *(part[0] for part in parts)])
    row_ids = np.concatenate([np.empty(0, np.uint64), *(part[1] for part in parts)])
    positions = np.concatenate([np.empty(0, np.int64), *(part[2] for part in parts)])
    order = sorting_order(keys, row_ids)
    keys = keys[order]
    starts = np.flatnonzero(run_starts(keys))
    return TableKeys(keys[starts], positions[order], starts, len(reader))


class Fit(NamedTuple):
    """What a filter says of some rows.

    Attributes:
        fits: `(n,) bool`, whether a row is meant.
        unknown: How many of the others could not be read.
    """

    fits: npt.NDArray[np.bool_]
    unknown: int


def fitting(reader: Reader, positions: Positions, chosen: RowFilter) -> Fit:
    """Apply a filter to some rows; nothing but the columns that it needs is read.

    Args:
        reader: The version of a table that the positions are of.
        positions: `(n,) int64`, sorted.
        chosen: The filter.

    Raises:
        ConfigError: The table has no such column.
        CacheError: It cannot be read for what is no damage.
    """
    names = chosen.columns(reader.schema)
    if not names:
        return Fit(np.ones(len(positions), bool), 0)
    fits, unknown = np.zeros(len(positions), bool), 0
    for span, fragment in _spans(reader, positions):
        try:
            rows = reader.take(positions[span], names)
        except DamagedSpaceError as error:
            _warn(reader, fragment, "What rows are meant", error)
            unknown += span.stop - span.start
            continue
        rows = rows.append_column(_AT, pa.array(np.arange(span.start, span.stop)))
        found = chosen.apply(rows.combine_chunks().to_batches()[0])
        fits[found.column(_AT).to_numpy()] = True
    return Fit(fits, unknown)


def read_sound(reader: Reader, positions: Positions) -> Iterator[tuple[Positions, pa.RecordBatch]]:
    """Read rows with all their columns, by batches; only those that are sound.

    Left out are rows that fail their checksum, are not finite, or have another key than that of
    their text; and, with a warning, those that cannot be read. Where only texts and notes cannot
    be read, rows come without these columns.

    Args:
        reader: The version of a table that the positions are of.
        positions: `(n,) int64`, sorted.

    Yields:
        `(m,) int64`, where in `positions` the batch's m rows stand; and the batch.

    Raises:
        CacheError: The table cannot be read for what is no damage (no permission, say).
    """
    for span, rows in _read_ahead(reader, positions):
        sound = _sound(reader, rows)
        yield span.start + np.flatnonzero(sound), rows.batch.filter(pa.array(sound))


def _read_ahead(reader: Reader, positions: Positions) -> Iterator[tuple[slice, Verified]]:
    """Batches in their order; the next ones are on their way while one is worked on."""
    pending: deque[tuple[slice, Future[Verified | None]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for span, fragment in _spans(reader, positions):
            pending.append((span, pool.submit(_read, reader, positions[span], fragment)))
            if len(pending) > _AHEAD:
                yield from _arrived(*pending.popleft())
        while pending:
            yield from _arrived(*pending.popleft())


def _arrived(span: slice, read: Future[Verified | None]) -> Iterator[tuple[slice, Verified]]:
    rows = read.result()
    if rows is not None:
        yield span, rows


def _read(reader: Reader, positions: Positions, fragment: lance.LanceFragment) -> Verified | None:
    """A batch with all columns, or else with its values alone; None where neither can be read."""
    texts_and_notes = [name for name in reader.columns if name not in ("key", "checksum")]
    for names in (texts_and_notes, []):
        try:
            return reader.read_batch(positions, names)
        except DamagedSpaceError as error:
            _warn(reader, fragment, "Some columns" if names else "Rows", error)
    return None


def _sound(reader: Reader, rows: Verified) -> npt.NDArray[np.bool_]:
    fits = key_fits(rows.batch, rows.keys, reader.layout, reader.metadata.identity)
    return np.asarray(~rows.damaged & (fits != 0))


def _spans(reader: Reader, positions: Positions) -> Iterator[tuple[slice, lance.LanceFragment]]:
    """Slices of sorted positions that are read at once, each of one fragment, whose error it is."""
    edges = np.searchsorted(positions, reader.starts).tolist()
    for fragment, start, stop in zip(reader.fragments, edges, edges[1:], strict=False):
        for at in range(start, stop, reader.batch_rows):
            yield slice(at, min(at + reader.batch_rows, stop)), fragment


def _warn(reader: Reader, fragment: lance.LanceFragment, what: str, error: CacheError) -> None:
    logger.warning(
        "%s: %s cannot be read, %s: %s", reader.location, what, files_of(fragment), error
    )
