"""Rows of a damaged space that its newest usable version lacks, read in other ways.

From data files that no version names, from damaged ones as far as they go, and from older versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.store import Layout, Location, Reader, Space, Verified
from embcache.store.data_file import DataFile
from embcache.store.index import KeyIndex, KeyParts, unique_keys
from embcache.store.lance_errors import READ_FIX, lance_errors
from embcache.store.manifests import data_paths
from embcache.store.verify import key_fits, verify
from embcache.store.versions import data_names, open_version
from embcache.store.watch import reading
from embcache.tools.append import Appender
from embcache.tools.verified_rows import RowIds, Survey, read_rows

Live = npt.NDArray[np.bool_]
"""`(n,) bool`, False for rows of a data file that are deleted."""

_OFFSET = np.uint64(0xFFFFFFFF)  # of a row's address; the fragment is in front of it
_NO_KEYS = np.empty((0, 2), np.uint64)


def open_files(paths: Iterable[Path]) -> Iterator[DataFile]:
    """Those of some data files that can be opened."""
    for path in paths:
        with suppress(CacheError):  # nothing in it can be read, and what is missing is a miss
            yield DataFile(path)


def paths_of(location: Location, fragments: Iterable[lance.LanceFragment]) -> list[Path]:
    """Data files of some fragments, those that are there."""
    names = data_names(fragments)
    paths = [] if location.folder is None else data_paths(location.folder)
    return [path for path in paths if path.name in names]


def _misnamed(reader: Reader, fragment: lance.LanceFragment) -> list[Path]:
    """Files that may be a fragment's whose own is not there: its name may be what is damaged."""
    folder, named = reader.location.folder, data_names(reader.fragments)
    paths = [] if folder is None else data_paths(folder)
    files = open_files(path for path in paths if path.name not in named)
    return [file.path for file in files if len(file) == fragment.metadata.physical_rows]


class Recovery:
    """Appends rows of data files to a space, those whose keys it lacks.

    Args:
        space: Where they go; begun if need be.
        dim: Components of its vectors; 1 for scores.
        identity: Its own: files of another one are passed over.
        keys: `(n, 2) uint64`, of the rows that it has.

    Attributes:
        recovered: Rows that were committed.
    """

    def __init__(self, space: Space, dim: int, identity: Identity, keys: Keys = _NO_KEYS) -> None:
        self.recovered = 0
        self._space = space
        self._dim = dim
        self._identity = identity
        self._known = KeyParts()
        self._remember(keys)

    def take_in(self, paths: Iterable[Path]) -> None:
        """Append what can be read of some data files, in their order.

        Raises:
            CacheError: The space cannot be written.
        """
        appender = Appender(self._commit)
        for file in open_files(paths):
            for batch in self._parts(file):
                appender.add(batch)
        appender.flush()

    def take_back(self, reader: Reader, found: Survey, older: Sequence[int]) -> None:
        """Append what can be read in other ways of a version's damaged rows.

        Args:
            reader: The version.
            found: What of it is damaged.
            older: Versions that may have other copies of its rows.

        Raises:
            CacheError: The space cannot be written.
        """
        appender = Appender(self._commit)
        lost = [found.damaged]
        for fragment in reader.fragments:
            if fragment.fragment_id in found.broken:
                row_ids, live = _live_rows(reader, fragment)
                lost.append(row_ids)
                paths = paths_of(reader.location, [fragment]) or _misnamed(reader, fragment)
                for file in open_files(paths):
                    for batch in self._parts(file, live):
                        appender.add(batch)
                for batch in self._by_manifest(reader, fragment):
                    appender.add(batch)
        for batch in self._copies(reader.location, np.concatenate(lost), older):
            appender.add(batch)
        appender.flush()

    def _by_manifest(
        self, reader: Reader, fragment: lance.LanceFragment
    ) -> Iterator[pa.RecordBatch]:
        """Values as the table reads them, which looks at nothing that the file says of itself."""
        with suppress(CacheError):  # that is why it is here
            for part in reader.read_fragment(fragment):
                yield self._new(part, reader.layout)

    def _copies(
        self, location: Location, wanted: RowIds, older: Sequence[int]
    ) -> Iterator[pa.RecordBatch]:
        """Rows of older versions, by row id: a compaction keeps it, and leaves the old file."""
        for number in older if len(wanted) else ():
            with suppress(CacheError):  # a compaction of another process removed it just now
                reader = Reader(open_version(location, number), location)
                for batch in read_rows(reader, wanted, reader.columns):
                    yield self._new(verify(batch, reader.layout), reader.layout)

    def _commit(self, rows: pa.Table) -> int:
        if len(rows):
            self._space.append(rows, self._dim)
            self.recovered += len(rows)
        return len(rows)

    def _parts(self, file: DataFile, live: Live | None = None) -> Iterator[pa.RecordBatch]:
        if file.metadata.identity == self._identity and file.dim == self._dim:
            for part in file.read(live if live is None or len(live) == len(file) else None):
                yield self._new(part, file.layout)

    def _new(self, part: Verified, layout: Layout) -> pa.RecordBatch:
        fits = key_fits(part.batch, part.keys, layout, self._identity)
        good = np.flatnonzero(~part.damaged & (fits != 0) & (self._known.find(part.keys) < 0))
        first, _ = unique_keys(part.keys[good])
        chosen = good[first]
        self._remember(part.keys[chosen])
        return part.batch.take(pa.array(chosen))

    def _remember(self, keys: Keys) -> None:
        order = np.arange(len(keys), dtype=np.uint64)
        self._known = self._known.extended(KeyIndex.build(keys, order))


def _live_rows(reader: Reader, fragment: lance.LanceFragment) -> tuple[RowIds, Live | None]:
    """Row ids of a fragment, and which rows of its file they are; none, None if that is lost."""
    try:
        reading(f"{reader.location}, row ids of fragment {fragment.fragment_id}")
        with lance_errors("Reading row ids of", reader.location, READ_FIX):
            scanner = reader.dataset.scanner(
                columns=[], with_row_id=True, with_row_address=True, fragments=[fragment]
            )
            rows = scanner.to_table()
            if rows.num_rows != fragment.metadata.num_rows:
                raise CacheError("The deletions of a fragment are not its own.")
            live = np.zeros(fragment.metadata.physical_rows, bool)
            live[rows.column("_rowaddr").to_numpy() & _OFFSET] = True
    except CacheError:
        return np.empty(0, np.uint64), None
    return rows.column("_rowid").to_numpy(), live
