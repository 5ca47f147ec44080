"""What a space held at one moment: a version of its table, and where its keys lie in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.identity.keys import Keys
from embcache.store.base import Part
from embcache.store.index import KeyIndex, KeyParts, Positions, UnsortedKeys
from embcache.store.reader import Reader
from embcache.store.verify import Values, batch_keys


class SpaceSnapshot:
    """What a space held at one moment: a version of its table, and the index of its keys.

    It never changes, so threads may share it: look-up and read are always of the same version.

    Args:
        reader: The version; None before the space's first row.
        index: The keys of the reader's rows; None for none.

    Attributes:
        reader: As given.
        index: The keys, none where none were given.
    """

    def __init__(self, reader: Reader | None = None, index: KeyParts | None = None) -> None:
        self.reader = reader
        self.index = KeyParts() if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dim(self) -> int | None:
        """Components of its vectors (1 for scores); None before the first row."""
        return None if self.reader is None else self.reader.dim

    @property
    def engine_version(self) -> str | None:
        """Engine package and version of the first writer; None before the first row."""
        return None if self.reader is None else self.reader.metadata.engine_version

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns; none before the first row."""
        return [] if self.reader is None else self.reader.columns

    def find(self, keys: Keys) -> Positions:
        """Where each key's row lies, `(len(keys),) int64`, -1 for a miss; for `read`."""
        return self.index.find(keys)

    def keys(self) -> Keys:
        """All keys in scan order, `(len(self), 2) uint64`: row i lies at position i."""
        return self.index.keys()

    def read(self, positions: Positions, keys: Keys) -> Iterator[Part]:
        """Read rows by parts, see `Reader.read`."""
        if self.reader is not None and len(positions):
            yield from self.reader.read(positions, keys)

    def read_all(self, positions: Positions, keys: Keys) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Read some rows into one matrix.

        Args:
            positions: `(n,) int64`, from `find`, none of them -1.
            keys: `(n, 2) uint64`, the keys that the rows should have.

        Returns:
            `(n, dim) float32`, zeros where a row is damaged; and `(n,) bool`, True there.

        Raises:
            CacheError: Lance cannot read the table.
        """
        values = np.zeros((len(positions), self.dim or 0), np.float32)
        damaged = np.zeros(len(positions), bool)
        for part in self.read(positions, keys):
            values[part.at] = np.where(part.damaged[:, None], 0, part.values)
            damaged[part.at] = part.damaged
        return values, damaged

    def take(self, positions: Positions, columns: Sequence[str]) -> pa.Table:
        """Some columns of a few rows, in the order of the positions; rows are not checked."""
        if self.reader is None or not len(positions):
            schema = pa.schema([]) if self.reader is None else self.reader.schema
            return pa.schema([schema.field(name) for name in columns]).empty_table()
        return self.reader.take(positions, columns)

    def scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns and `_rowid` of all rows, in scan order; rows are not checked."""
        if self.reader is not None:
            yield from self.reader.scan(columns)


def extended_index(before: SpaceSnapshot, reader: Reader) -> KeyParts:
    """The index of a newer version: only what follows the fragments that are unchanged is read.

    A merged fragment comes last, and may hold older rows than some that are unchanged. Where it has
    a key of theirs, only an index that is made anew knows which row was committed first.
    """
    known = [] if before.reader is None else _shape(before.reader)
    pairs = zip(known, _shape(reader), strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    index = before.index.first(sum(rows for _, rows in known[:same]))
    fresh = _index_keys(reader.dataset, reader.fragments[same:], len(index))
    if same < len(known) and (index.find(fresh.keys) >= 0).any():
        return KeyParts().extended(_index_keys(reader.dataset, reader.fragments, 0))
    return index.extended(fresh)


def _shape(reader: Reader) -> list[tuple[int, int]]:
    return [(f.fragment_id, f.metadata.num_rows) for f in reader.fragments]


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
