"""Rows whose key another row has: processes that encode one text at the same time leave them.

Which row of a key stays is decided as readers and `check_space` decide: the one that was committed
first, of those that are sound. So the rows of such keys are read and checked, and no others. To
check only the first row, and to keep all where it is damaged, was rejected: the key would stay
twice, and readers would go on to meet the damaged row.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from embcache.errors import DamagedSpaceError
from embcache.store import Location, Reader, Space
from embcache.store.index import KeyIndex, Positions, UnsortedKeys
from embcache.store.lance_errors import READ_FIX, lance_errors
from embcache.store.verify import batch_keys
from embcache.tools.missing_rows import read_sound

logger = logging.getLogger(__name__)


def remove_duplicates(location: Location) -> int:
    """Delete rows until each key of a table is there once.

    Of the rows of a key, the first sound one stays: its checksum is right, and its key is that of
    its text, as far as that is stored. Where none is sound, all stay: an older version may have
    what `check_space` mends them with. Where keys cannot be read, nothing is deleted, with a
    warning.

    Other processes may read and write meanwhile: rows are deleted by their stable row ids. Of a
    table without such ids, which embcache does not make, nothing is deleted: there, a compaction
    by another tool gives a row's id to another row.

    Memory: some 35 bytes a row, 75 a row whose key others have, and a batch of such rows.

    Args:
        location: The table's place.

    Returns:
        How many rows were deleted.

    Raises:
        ConfigError: There is no table.
        CacheError: Lance cannot write it, or cannot read it for what is no damage (no permission,
            say).
    """
    # Whoever calls this compacts: a second compaction, in the background, would be in the way.
    space = Space(location, compact_automatically=False)
    reader = space.open()
    if len(reader) < 2 or not reader.dataset.has_stable_row_ids:
        return 0
    try:
        positions, starts = _shared(_index(reader))
    except DamagedSpaceError as error:
        logger.warning("Duplicates stay where keys cannot be read. %s", error)
        return 0
    surplus = _surplus(reader, positions, starts)
    if len(surplus):
        space.delete_rows(reader.take(surplus, ["_rowid"]).column("_rowid").to_numpy())
    return len(surplus)


def _index(reader: Reader) -> KeyIndex:
    """All keys of a table, sorted; of equal ones, the one that was committed first comes first."""
    keys = UnsortedKeys(len(reader))
    with lance_errors("Reading the keys of", reader.location, READ_FIX):
        for batch in reader.key_batches(reader.fragments):
            keys.add(batch_keys(batch), batch.column("_rowid").to_numpy())
        return keys.index()


def _shared(index: KeyIndex) -> tuple[Positions, npt.NDArray[np.bool_]]:
    """The rows whose key another row has, by key, each key's in the order of their commits.

    Returns:
        `(s,) int64`, their positions; and `(s,) bool`, True for the first row of each key.
    """
    again = np.zeros(len(index) + 1, bool)
    again[1:-1] = index.heads[1:] == index.heads[:-1]
    again[1:-1] &= index.tails[1:] == index.tails[:-1]
    shared = again[:-1] | again[1:]
    return index.positions[shared], ~again[:-1][shared]


def _surplus(reader: Reader, positions: Positions, starts: npt.NDArray[np.bool_]) -> Positions:
    """All rows but the first sound one of each key, for the keys that have one; see `_shared`."""
    order = np.argsort(positions)
    sound = np.zeros(len(positions), bool)
    for at, _ in read_sound(reader, positions[order]):
        sound[order[at]] = True
    owners = np.cumsum(starts)
    candidates = np.flatnonzero(sound)
    mended, first = np.unique(owners[candidates], return_index=True)
    surplus = np.isin(owners, mended)
    surplus[candidates[first]] = False
    return positions[surplus]
