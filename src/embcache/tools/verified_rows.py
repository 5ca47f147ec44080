"""Survey a table: read and check every row. Checking, merging and exporting build on this.

Fragment by fragment, so that one that cannot be read costs no other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError
from embcache.identity.keys import Keys
from embcache.store import Reader, Verified
from embcache.store.index import run_starts, sorting_order
from embcache.store.verify import key_fits
from embcache.store.versions import data_names

logger = logging.getLogger(__name__)

RowIds = npt.NDArray[np.uint64]
"""`(n,) uint64`: Lance's stable row ids."""

_ROW_VERSIONS = ("_row_created_at_version", "_row_last_updated_at_version")
_NO_IDS = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Survey:
    """Every row of one version of a table. Memory: 24 bytes a row, 48 in the making.

    Attributes:
        rows: Rows of the table, those of unreadable files included.
        keys: `(n, 2) uint64`, of the intact rows; sorted.
        row_ids: `(n,) uint64`; of equal keys, the one that was committed first comes first.
        damaged: `(d,) uint64`, row ids of rows that fail their checksum or are not finite.
        misfits: `(m,) uint64`, row ids of intact rows whose key is not that of their text.
        unverified: Number of intact rows whose key could not be computed again.
        unreadable: Data files that Lance cannot read, each with its error.
        broken: Ids of the fragments that `unreadable` is of.
        partial: `(p,) uint64`, those of `row_ids` that lie in these, so that they cannot stay.
        spoilt: Ids of the fragments that hold damaged rows.
    """

    rows: int
    keys: Keys
    row_ids: RowIds
    damaged: RowIds
    misfits: RowIds
    unverified: int
    unreadable: tuple[str, ...]
    broken: tuple[int, ...]
    partial: RowIds
    spoilt: tuple[int, ...]

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """`(n,) bool`, False for rows whose key an earlier row has."""
        return run_starts(self.keys)


def survey(reader: Reader) -> Survey:
    """Check every row of a table: checksums, and keys against the texts that are stored.

    What cannot be read is part of the answer, not an error.
    """
    keys, row_ids = np.empty((len(reader), 2), np.uint64), np.empty(len(reader), np.uint64)
    damaged, misfits, partial = [_NO_IDS], [_NO_IDS], [_NO_IDS]
    unreadable, broken, spoilt = [], [], []
    at, unverified = 0, 0
    for fragment in reader.fragments:
        judged, error = _judge_fragment(reader, fragment)
        if error:
            unreadable.append(error)
            broken.append(fragment.fragment_id)
            partial += [batch.row_ids for batch in judged]
        if any(len(batch.damaged) for batch in judged):
            spoilt.append(fragment.fragment_id)
        for batch in judged:
            stop = at + len(batch.row_ids)
            keys[at:stop], row_ids[at:stop] = batch.keys, batch.row_ids
            at = stop
            damaged.append(batch.damaged)
            misfits.append(batch.misfits)
            unverified += batch.unverified
    order = sorting_order(keys[:at], row_ids[:at])
    return Survey(
        len(reader),
        keys[order],
        row_ids[order],
        np.concatenate(damaged),
        np.concatenate(misfits),
        unverified,
        tuple(unreadable),
        tuple(broken),
        np.concatenate(partial),
        tuple(spoilt),
    )


def read_rows(reader: Reader, wanted: RowIds, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read some rows by batches, in scan order; damaged ones are left out.

    What of a fragment cannot be read is left out with a warning. If it can be read without its
    texts and notes, its rows come without these columns.

    Args:
        reader: The version of a table that `wanted` is of.
        wanted: `(n,) uint64`, row ids.
        columns: Columns to read beside key, value and checksum.
    """
    wanted = np.sort(wanted)
    for fragment in reader.fragments:
        done = np.empty(0, np.uint64)
        for names in ([*columns], []) if columns else ([],):
            try:
                for part in reader.read_fragment(fragment, names):
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
                    reader.location,
                    "Some columns" if names else "Rows",
                    error,
                )


class _Judged(NamedTuple):
    """What a `Survey` needs of one batch."""

    keys: Keys
    row_ids: RowIds
    damaged: RowIds
    misfits: RowIds
    unverified: int


def _judge_fragment(
    reader: Reader, fragment: lance.LanceFragment
) -> tuple[list[_Judged], str | None]:
    """A fragment's batches, as far as it can be read; and the error, if that is not to its end."""
    # All columns, and what the manifest says of each row: a compaction fails on any of them.
    inline = _ROW_VERSIONS if reader.dataset.has_stable_row_ids else ()
    judged, error = _judge_columns(reader, fragment, [*reader.columns, *inline])
    if error is None:
        return judged, error
    # One byte that is no UTF-8 fails a whole batch, and its vectors may all be intact.
    judged, worse = _judge_columns(reader, fragment, [])
    return judged, worse or f"texts or notes in {error}"


def _judge_columns(
    reader: Reader, fragment: lance.LanceFragment, columns: Sequence[str]
) -> tuple[list[_Judged], str | None]:
    judged: list[_Judged] = []
    try:
        for part in reader.read_fragment(fragment, columns):
            judged.append(_judge(part, reader))
    except CacheError as error:
        return judged, str(error)
    read = sum(len(part.row_ids) + len(part.damaged) + len(part.misfits) for part in judged)
    if read != fragment.metadata.num_rows:  # the file of another fragment's deletions, say
        names = ", ".join(sorted(data_names([fragment])))
        return (
            judged,
            f"data/{names}: {read:,} rows, {fragment.metadata.num_rows:,} in the manifest",
        )
    return judged, None


def _judge(part: Verified, reader: Reader) -> _Judged:
    fits = key_fits(part.batch, part.keys, reader.layout, reader.metadata.identity)
    good = ~part.damaged & (fits != 0)
    return _Judged(
        part.keys[good],
        part.row_ids[good],
        part.row_ids[part.damaged],
        part.row_ids[~part.damaged & (fits == 0)],
        int((good & (fits < 0)).sum()),
    )


def _among(row_ids: RowIds, wanted: RowIds) -> npt.NDArray[np.bool_]:
    """Which row ids are in a sorted array."""
    spots = np.searchsorted(wanted, row_ids)
    inside = spots < len(wanted)
    inside[inside] = wanted[spots[inside]] == row_ids[inside]
    return inside
