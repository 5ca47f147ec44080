"""One version of a table, pinned, and the one way to read its rows: with every row checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from embcache.errors import ConfigError, DamagedSpaceError
from embcache.identity.keys import Keys
from embcache.store import panics
from embcache.store.base import Part
from embcache.store.fetching import readahead
from embcache.store.index import Positions
from embcache.store.lance_errors import READ_FIX, lance_errors, without_code, words_of
from embcache.store.location import Location
from embcache.store.locks import Pin
from embcache.store.schema import (
    SpaceMetadata,
    check_columns,
    read_metadata,
    schema_layout,
    value_dim,
)
from embcache.store.untrusted import check_manifest
from embcache.store.values import read_values
from embcache.store.verify import Verified, verify
from embcache.store.watch import reading

logger = logging.getLogger(__name__)

NO_MANIFEST = "has data files and no manifest that says what is in them."
_BATCH_ROWS = 4096
_MOST_ROWS = 2**40  # of a table; their keys alone would take 16 TiB
_KEY_ROWS = 8192  # Lance's default
_BATCH_BYTES = 4 * 2**20
_SAMPLE_ROWS = 64
_ERROR_CHARACTERS = 200  # Lance appends paths of its own source files


def open_table(location: Location, version: int | None = None) -> lance.LanceDataset:
    """A version of a table.

    Args:
        location: The table.
        version: Which; None for the latest.

    Raises:
        ConfigError: There is no table.
        DamagedSpaceError: Lance cannot open it.
        CacheError: The operating system does not let it (too many open files, no permission); or
            it is not all in its own folder, see `untrusted`.
    """
    if location.folder is not None:
        check_table(location)
    reading(location if version is None else f"{location}, version {version}")
    doing = "Opening" if version is None else f"Opening version {version} of"
    with lance_errors(doing, location, READ_FIX), panics.off_screen():
        location.check_table()
        dataset = _dataset(location, version)
        check_manifest(dataset, location)
        # Lance is lazy: asked here for what panics after a flip in a manifest, it may be asked
        # anywhere from now on.
        dataset.schema  # noqa: B018
        dataset.get_fragments()
        return dataset


def _dataset(location: Location, version: int | None) -> lance.LanceDataset:
    def look() -> lance.LanceDataset:
        return lance.dataset(str(location), version=version, storage_options=location.lance_options)

    try:
        dataset = look()
    except Exception as error:
        if location.folder is not None or location.is_outage(error):
            raise
        check_table(location)  # looked for only now: it takes a request
        dataset = look()  # another process removed the table meanwhile, and it was made again
    location.watch(dataset)
    return dataset


def check_table(location: Location) -> None:
    """Refuse a place where no table is.

    Raises:
        ConfigError: There is none.
        DamagedSpaceError: There was one.
    """
    if not location.has_table():
        check_not_lost(location)
        raise ConfigError(
            f"{str(location)!r} is no space: there is no Lance table. Give the folder of one, "
            "<cache>/<name>.lance."
        )


def check_not_lost(location: Location) -> None:
    """Refuse a table that has rows and no version.

    Raises:
        DamagedSpaceError: It is one.
    """
    if location.is_lost_table():
        raise DamagedSpaceError(f"{location} {NO_MANIFEST} `check_space` with fix=True mends it.")


class Reader:
    """Reads one version of a table; never changes, so threads may share it.

    Positions count rows in scan order. That a position still means the row that an index saw is
    not taken on trust: `read` hashes the key that was asked for.

    Args:
        dataset: The table, opened at a version.
        location: Where it lies.
        pin: What keeps the version's files, for as long as this object lives; None for nothing.

    Attributes:
        dataset: As given.
        location: As given.
        fragments: Its fragments, in scan order.
        starts: `(len(fragments) + 1,) int64`, the position of each fragment's first row, and at
            the end the number of rows.
        metadata: What the table says about itself.
        layout: Whether it holds vectors or scores.

    Raises:
        CacheFormatError: The table is of a newer format, or no space of embcache, or
            its columns are not those of one.
        DamagedSpaceError: Its schema is not what it was.
    """

    def __init__(
        self, dataset: lance.LanceDataset, location: Location, pin: Pin | None = None
    ) -> None:
        self.dataset = dataset
        self.location = location
        self._pin = pin
        self.metadata: SpaceMetadata = read_metadata(dataset.schema, str(location))
        check_columns(dataset.schema, self.metadata, str(location))
        self.layout = schema_layout(dataset.schema)
        with lance_errors("Opening", location, READ_FIX):
            self.fragments: list[lance.LanceFragment] = dataset.get_fragments()
            sizes = [fragment.metadata.num_rows for fragment in self.fragments]
            if min(sizes, default=0) < 0 or sum(sizes) >= _MOST_ROWS:
                raise DamagedSpaceError(
                    f"The manifest of {location} has {sum(sizes):,} rows. {READ_FIX.text}"
                )
        self.starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    def try_reading(self) -> None:
        """Read a row, to find out whether the schema fits the data files.

        Where it does not (the dimension was flipped, say), native code panics; what goes wrong
        otherwise is left to whoever reads.

        Raises:
            DamagedSpaceError: It does not fit.
        """
        if not len(self):
            return
        # Not texts: Lance would keep their pages, and they may be large.
        names = [name for name in self.columns if name not in self.layout.texts]
        with lance_errors("Opening", self.location, READ_FIX), panics.off_screen():
            try:
                self._announce(self.fragments[0])
                self.dataset.take([0], columns=names)
            except Exception as error:
                logger.debug("%s: the first row cannot be read: %s", self.location, error)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """The table's Arrow schema."""
        return self.dataset.schema

    @property
    def dim(self) -> int:
        """Components of its vectors; 1 for scores."""
        return value_dim(self.schema)

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return list(self.schema.names)

    @property
    def is_gone(self) -> bool:
        """Whether the version was removed, as far as its pin tells."""
        return self._pin is not None and self._pin.is_gone

    def check_fit(self) -> None:
        """See that the schema is that of the data files: that any row at all is intact.

        A dimension that was flipped to a smaller one gives wrong values without an error, and
        every row would be taken for damaged, and deleted. A few rows of one fragment nearly always
        decide it; only where none of them is intact, others are looked at.

        Raises:
            DamagedSpaceError: There are rows, and none of those that were looked at is intact.
        """
        first: DamagedSpaceError | None = None
        for start, stop in zip(self.starts.tolist(), self.starts[1:].tolist(), strict=False):
            if start == stop:
                continue
            try:
                with panics.off_screen():
                    found = self.read_range(start, min(stop - start, _SAMPLE_ROWS))
            except DamagedSpaceError as error:
                first = first or error
                continue
            if not found.damaged.all():
                return
        if len(self):
            raise first or DamagedSpaceError(
                f"{self.location}: no row of version {self.dataset.version} is intact. "
                f"{READ_FIX.text}"
            )

    def read(self, positions: Positions, keys: Keys) -> Iterator[Part]:
        """Read values by position, each row checked with the key that it should have.

        Args:
            positions: `(n,) int64`, where the rows lie.
            keys: `(n, 2) uint64`, whose rows they should be.

        Raises:
            CacheError: Lance cannot read the table (a truncated file, say).
        """
        order = np.argsort(positions, kind="stable")
        with lance_errors("Reading vectors from", self.location, READ_FIX):
            for part in read_values(self, positions[order], keys[order]):
                yield part._replace(at=order[part.at])

    def read_fragment(
        self, fragment: lance.LanceFragment, columns: Sequence[str] = ()
    ) -> Iterator[Verified]:
        """Read all rows of a fragment, each checked with its own key, row ids included.

        Args:
            fragment: One of `fragments`.
            columns: Which columns the batches need beside key, value and checksum.

        Raises:
            DamagedSpaceError: Lance cannot read it; the message begins with its files' names.
        """
        names = list(dict.fromkeys(["key", self.layout.value, "checksum", *columns]))
        for batch in self._guarded(fragment, names):
            yield verify(batch, self.layout)

    def key_batches(self, fragments: list[lance.LanceFragment]) -> Iterator[pa.RecordBatch]:
        """Keys and row ids of some fragments, by batches; what Lance raises passes as it is."""
        batches = self.batches(["key"], fragments, with_row_id=True, batch_rows=_KEY_ROWS)
        yield from panics.each_off_screen(batches)

    def keys_of(self, fragment: lance.LanceFragment) -> Iterator[pa.RecordBatch]:
        """Keys and row ids of a fragment, by batches.

        Raises:
            DamagedSpaceError: Lance cannot read it.
        """
        yield from self._guarded(fragment, ["key"])

    def try_fragment(self, fragment: lance.LanceFragment, columns: Sequence[str]) -> None:
        """Read some columns of a fragment to their end, to find out whether they can be.

        Raises:
            DamagedSpaceError: They cannot; the message begins with the data files' names.
            CacheError: It is no damage (too many open files, no permission).
        """
        with panics.off_screen():  # as a whole: Lance reads ahead
            for _ in self._guarded(fragment, list(columns)):
                pass

    def read_range(self, start: int, count: int) -> Verified:
        """Read neighbouring rows, each checked with its own key.

        Args:
            start: Position of the first.
            count: How many, at most: fewer where the table ends.

        Raises:
            CacheError: Lance cannot read the table.
        """
        return self.read_batch(np.arange(start, min(start + count, len(self))))

    def read_batch(self, positions: Positions, columns: Sequence[str] = ()) -> Verified:
        """Read some rows at once, each checked with its own key, in the order of the positions.

        Neighbours cost one request, and what lies between others is hardly read.

        Args:
            positions: `(n,) int64`, one or more.
            columns: Which columns the batch needs beside key, value and checksum.

        Raises:
            CacheError: Lance cannot read the table.
        """
        names = list(dict.fromkeys(["key", self.layout.value, "checksum", *columns]))
        table = self.take(positions, names)
        if len(table) != len(positions):
            raise DamagedSpaceError(
                f"Reading rows of {self.location} failed: Lance returned {len(table):,} of "
                f"{len(positions):,}. {READ_FIX.text}"
            )
        return verify(table.combine_chunks().to_batches()[0], self.layout)

    def scan(
        self, columns: Sequence[str], batch_rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Some columns and `_rowid` of all rows, in scan order, by batches; rows are not checked.

        Raises:
            CacheError: Lance cannot read the table.
        """
        with lance_errors("Scanning", self.location, READ_FIX):
            scanner = self.dataset.scanner(
                columns=list(columns),
                with_row_id=True,
                batch_size=batch_rows,
                scan_in_order=True,
                io_buffer_size=readahead(self.location).io_buffer_size,
            )
            yield from panics.each_off_screen(scanner.to_batches())

    def take(self, positions: Positions, columns: Sequence[str]) -> pa.Table:
        """Some columns of a few rows, in the order of the positions; rows are not checked.

        Raises:
            CacheError: Lance cannot read the table.
        """
        with lance_errors("Reading rows of", self.location, READ_FIX), panics.off_screen():
            return self.dataset.take(positions, columns=list(columns))

    def _announce(self, fragment: lance.LanceFragment) -> None:
        reading(f"{self.location}, fragment {fragment.fragment_id} of {self.dataset.version}")

    def _guarded(
        self, fragment: lance.LanceFragment, columns: list[str]
    ) -> Iterator[pa.RecordBatch]:
        """Batches of a fragment; errors name its files, which are what is at fault."""
        rows, promised = 0, fragment.metadata.num_rows
        self._announce(fragment)
        try:
            with lance_errors("Reading", self.location, READ_FIX):
                batches = self.batches(columns, [fragment], with_row_id=True)
                for batch in panics.each_off_screen(batches):
                    rows += batch.num_rows
                    if rows > promised:
                        break
                    yield batch
        except DamagedSpaceError as error:
            cause = error.__cause__ or error
            said = without_code(words_of(cause))[:_ERROR_CHARACTERS]
            raise DamagedSpaceError(f"{_files(fragment)}: {said}") from cause
        if rows != promised:
            raise DamagedSpaceError(
                f"{_files(fragment)}: {rows:,} rows {'at least ' if rows > promised else ''}where "
                f"the manifest has {promised:,}"
            )

    def batches(
        self,
        columns: Sequence[str],
        fragments: list[lance.LanceFragment],
        *,
        with_row_id: bool = False,
        batch_rows: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of the rows of some fragments, in order; what Lance raises passes as it is.

        Args:
            columns: Their names.
            fragments: Some of `fragments`.
            with_row_id: Whether with `_rowid`.
            batch_rows: Rows of a batch at most; None for `batch_rows` of this object.
        """
        scanner = self.dataset.scanner(
            columns=list(columns),
            with_row_id=with_row_id,
            fragments=fragments,
            batch_size=batch_rows or self.batch_rows,
            scan_in_order=True,
            **readahead(self.location)._asdict(),
        )
        yield from scanner.to_batches()

    @property
    def batch_rows(self) -> int:
        """How many rows are read at once."""
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES // (4 * self.dim)))


def _files(fragment: lance.LanceFragment) -> str:
    """A fragment's data files and rows, for messages."""
    files = ", ".join(f"data/{file.path.rpartition('/')[2]}" for file in fragment.metadata.files)
    return f"{files} ({fragment.metadata.num_rows:,} rows)"
