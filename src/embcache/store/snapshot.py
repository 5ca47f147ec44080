"""What a space held at one moment: a version of its table, and where its keys lie in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby, takewhile

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.identity.keys import Keys
from embcache.store import index_file
from embcache.store.base import Part
from embcache.store.index import KeyIndex, KeyParts, Positions, UnsortedKeys
from embcache.store.reader import Reader
from embcache.store.verify import Values, batch_keys

Shape = list[tuple["Mark", bool]]


class SpaceSnapshot:
    """What a space held at one moment: a version of its table, and the index of its keys.

    It never changes, so threads may share it: look-up and read are always of the same version.

    Args:
        reader: The version; None before the space's first row.
        index: The keys of the reader's rows; None for none.
        shape: The reader's, see `Attributes`; none for none.
        kept: How many of the keys are on disk, see `embcache.store.index_file`.

    Attributes:
        reader: As given.
        index: The keys, none where none were given.
        shape: The fragments' marks, and whether `index` has their keys.
        kept: As given.
    """

    def __init__(
        self,
        reader: Reader | None = None,
        index: KeyParts | None = None,
        shape: Shape | None = None,
        kept: int = 0,
    ) -> None:
        self.reader = reader
        self.index = KeyParts() if index is None else index
        self.shape: Shape = [] if shape is None else shape
        self.kept = kept

    def __len__(self) -> int:
        """Number of rows, those that cannot be read included: their positions are taken."""
        return 0 if self.reader is None else len(self.reader)

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
        """All keys in scan order, `(len(self), 2) uint64`: row i lies at position i.

        Where fragments cannot be read, theirs are left out, and the others are in no order.
        """
        if len(self.index) == len(self):
            return self.index.keys()
        return np.concatenate([np.empty((0, 2), np.uint64), *(p.keys for p in self.index.parts)])

    def row_ids(self, keys: Keys) -> npt.NDArray[np.uint64]:
        """Lance's stable row ids of all rows with some keys, `(m,) uint64`.

        Raises:
            CacheError: Lance cannot read the table.
        """
        if self.reader is None:
            return np.empty(0, np.uint64)
        wanted = KeyIndex.build(keys, np.arange(len(keys), dtype=np.uint64))
        found = [np.empty(0, np.uint64)]
        for fragment, (_, there) in zip(self.reader.fragments, self.shape, strict=True):
            for batch in self.reader.keys_of(fragment) if there else ():
                chosen = wanted.find(batch_keys(batch)) >= 0
                found.append(batch.column("_rowid").to_numpy()[chosen])
        return np.concatenate(found)

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

    def is_of(self, reader: Reader) -> bool:
        """Whether a reader's version is this one: the same of the same table, by its files."""
        return (
            self.reader is not None
            and self.reader.dataset.version == reader.dataset.version
            and [mark for mark, _ in self.shape] == fragment_marks(reader)
        )

    def scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns and `_rowid` of all rows, in scan order; rows are not checked."""
        if self.reader is not None:
            yield from self.reader.scan(columns)


Mark = tuple[object, ...]
"""What tells a fragment from every other one, of this table or of one that takes its place."""


def fragment_marks(reader: Reader) -> list[Mark]:
    """The marks of a version's fragments, in scan order: files, and the dimension they have."""
    dim = reader.dim
    return [
        (
            fragment.fragment_id,
            fragment.metadata.num_rows,
            dim,
            *(file.path for file in fragment.data_files()),
            str(fragment.metadata.deletion_file),
        )
        for fragment in reader.fragments
    ]


def indexed(
    before: SpaceSnapshot, reader: Reader, lost: Collection[Mark] = frozenset()
) -> SpaceSnapshot:
    """The snapshot of a newer version; its index is that of the older one where it can be.

    What follows the fragments that are unchanged is read. A merged fragment comes last, and may
    hold older rows than some that are unchanged. Where it has a key of theirs, only an index that
    is made anew knows which row was committed first.

    Args:
        before: The older version.
        reader: The newer one.
        lost: Marks of fragments that cannot be read; their keys are left out.
    """
    if not before.shape and len(reader) >= index_file.LEAST_KEYS:
        before = _kept(reader)
    return _indexed(before, reader, lost)


def _kept(reader: Reader) -> SpaceSnapshot:
    """What the index that is kept on disk is of; nothing where there is none."""
    folder = reader.location.folder
    found = None if folder is None else index_file.load(folder, len(reader))
    if found is None:
        return SpaceSnapshot()
    marks, index = found
    return SpaceSnapshot(None, index, [(mark, True) for mark in marks], kept=len(index))


def _indexed(before: SpaceSnapshot, reader: Reader, lost: Collection[Mark]) -> SpaceSnapshot:
    shape = [(mark, mark not in lost) for mark in fragment_marks(reader)]
    pairs = zip(before.shape, shape, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    index = before.index.first(int(reader.starts[same]))
    fresh = [
        _index_keys(reader, start, stop)
        for start, stop in _runs([there for _, there in shape], same)
    ]
    if same < len(before.shape) and any((index.find(one.keys) >= 0).any() for one in fresh):
        return _indexed(SpaceSnapshot(), reader, lost)
    kept = min(before.kept, len(index))
    for one in fresh:
        index = index.extended(one)
    return SpaceSnapshot(reader, index, shape, kept)


def _runs(there: list[bool], at: int) -> Iterator[tuple[int, int]]:
    """Spans of neighbours that are there, from a place on."""
    for is_there, group in groupby(range(at, len(there)), key=there.__getitem__):
        if is_there:
            numbers = list(group)
            yield numbers[0], numbers[-1] + 1


def _index_keys(reader: Reader, start: int, stop: int) -> KeyIndex:
    """The keys of some neighbouring fragments."""
    fragments = reader.fragments[start:stop]
    keys = UnsortedKeys(sum(fragment.metadata.num_rows for fragment in fragments))
    # Batch by batch: a table of all keys would be as large as the index.
    for batch in reader.key_batches(fragments) if fragments else ():
        keys.add(batch_keys(batch), batch.column("_rowid").to_numpy())
    return keys.index(int(reader.starts[start]))
