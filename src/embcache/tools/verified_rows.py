"""Survey a table: read and check every row. Checking, mending and exporting build on this.

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
from embcache.store import Reader, Verified, panics
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
    """Every row of one version of a table. Memory: 24 bytes a row, 72 in the making.

    Attributes:
        rows: Rows of the table, those of unreadable files included.
        keys: `(n, 2) uint64`, of the intact rows; sorted.
        row_ids: `(n,) uint64`; of equal keys, the one that was committed first comes first.
        damaged: `(d,) uint64`, row ids of rows that fail their checksum or are not finite.
        misfits: `(m,) uint64`, row ids of intact rows whose key is not that of their text.
        unverified: Number of intact rows whose key could not be computed again.
        unreadable: Data files that Lance cannot read, each with its error.
        broken: Ids of the fragments that `unreadable` is of.
        partial: `(p,) uint64`, ids of the rows in these that can be read, damaged ones included.
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

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """`(n,) bool`, False for rows whose key an earlier row has."""
        return run_starts(self.keys)


def survey(reader: Reader) -> Survey:
    """Check every row of a table: checksums, and keys against the texts that are stored.

    What cannot be read is part of the answer, not an error.
    """
    judged = [_judge_fragment(reader, fragment) for fragment in reader.fragments]
    ids = [_all_ids(batches) for batches, _ in judged]
    errors = {at: error for at, (_, error) in enumerate(judged) if error}
    for at in _with_repeated_ids(ids) - errors.keys():
        errors[at] = f"{files_of(reader.fragments[at])}: its row ids are those of other rows"
    batches = [batch for group, _ in judged for batch in group]
    keys = np.concatenate([np.empty((0, 2), np.uint64), *(batch.keys for batch in batches)])
    row_ids = np.concatenate([_NO_IDS, *(batch.row_ids for batch in batches)])
    order = sorting_order(keys, row_ids)
    numbers = [fragment.fragment_id for fragment in reader.fragments]
    return Survey(
        len(reader),
        keys[order],
        row_ids[order],
        np.concatenate([_NO_IDS, *(batch.damaged for batch in batches)]),
        np.concatenate([_NO_IDS, *(batch.misfits for batch in batches)]),
        sum(batch.unverified for batch in batches),
        tuple(errors[at] for at in sorted(errors)),
        tuple(numbers[at] for at in sorted(errors)),
        np.concatenate([_NO_IDS, *(ids[at] for at in sorted(errors))]),
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


def _with_repeated_ids(ids: list[RowIds]) -> set[int]:
    """Which fragments have row ids that others have, or twice: a deletion by id hits both rows."""
    every = np.concatenate([_NO_IDS, *ids])
    owner = np.repeat(np.arange(len(ids)), [len(one) for one in ids])
    order = np.argsort(every)
    same = np.flatnonzero(every[order[1:]] == every[order[:-1]])
    return {*owner[order[same]].tolist(), *owner[order[same + 1]].tolist()}


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
        with panics.off_screen():  # as a whole: Lance reads ahead
            for part in reader.read_fragment(fragment, columns):
                judged.append(_judge(part, reader))
    except CacheError as error:
        return judged, str(error)
    read = len(_all_ids(judged))
    if read != fragment.metadata.num_rows:  # the file of another fragment's deletions, say
        said = f"{read:,} rows, and {fragment.metadata.num_rows:,} in the manifest"
        return judged, f"{files_of(fragment)}: {said}"
    if _contradicts_itself(fragment):
        return judged, f"{files_of(fragment)}: what the manifest says of its rows is damaged"
    return judged, None


def _contradicts_itself(fragment: lance.LanceFragment) -> bool:
    """Whether the two histories of a fragment's rows, which embcache never updates, differ.

    Lance pads one that is too short, and a compaction fails on it. Where another tool updated rows
    they differ, too: then the fragment is written anew for nothing.
    """
    metadata = fragment.metadata
    created, updated = metadata.created_at_version_meta, metadata.last_updated_at_version_meta
    return created is not None and updated is not None and created.json() != updated.json()


def files_of(fragment: lance.LanceFragment) -> str:
    """A fragment's data files, for messages."""
    return ", ".join(f"data/{name}" for name in sorted(data_names([fragment])))


def _all_ids(batches: list[_Judged]) -> RowIds:
    parts = [part for one in batches for part in (one.row_ids, one.damaged, one.misfits)]
    return np.concatenate([_NO_IDS, *parts])


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
