"""One space: the rows of one identity, in one Lance table."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import (
    CacheError,
    CacheWriteError,
    ConfigError,
    DamagedSpaceError,
    UnreachableError,
)
from embcache.identity import keys as key_bytes
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.store import commits, index_file, panics
from embcache.store.background import Compactor
from embcache.store.forks import ForkLock
from embcache.store.index import Positions, unique_keys
from embcache.store.lance_errors import READ_FIX, WRITE_FIX, lance_errors
from embcache.store.location import Location
from embcache.store.locks import in_turn, pin
from embcache.store.reader import Reader, open_table
from embcache.store.rows import Rows, conform
from embcache.store.salvage import Salvage, is_damage
from embcache.store.schema import (
    VECTORS,
    Layout,
    SpaceMetadata,
    read_metadata,
    space_schema,
    value_dim,
)
from embcache.store.snapshot import SpaceSnapshot, indexed
from embcache.store.untrusted import check_manifest
from embcache.store.verify import batch_keys

if TYPE_CHECKING:
    import lancedb

logger = logging.getLogger(__name__)

_DELETE_KEYS = 500  # in one delete statement
_DELETE_ROWS = 10_000

FRESH_SECONDS = 10.0
"""For how long what was seen of a table in a store is taken for what it holds."""

CANARIES = "_canaries"
"""Table of a space's canaries, in the space's own folder: what removes, moves or copies the space
takes it along, and nothing that walks over a cache's tables or a space's rows meets it."""


Staged = Callable[[str, Keys], None]
"""Gets a file of rows that is written and not committed, as `commits.add_staged` takes it, and the
rows' keys."""


class Space:
    """The handle of one table, which need not exist yet. Threads may share it.

    Reading and writing go through pylance, which reads at a memory map's speed and takes a second
    less to import than LanceDB.

    Args:
        location: Place of the table, `<cache>/<name>.lance`.
        metadata: What a new table says about itself; an existing one must say the same identity.
            None for a table that exists, whatever it says.
        layout: Whether a new table holds vectors or scores.
        store_text: Whether new rows carry their texts.
        compact_automatically: Whether to compact the table in the background, after commits, when
            it pays.
    """

    def __init__(
        self,
        location: Location,
        metadata: SpaceMetadata | None = None,
        *,
        layout: Layout = VECTORS,
        store_text: bool = True,
        compact_automatically: bool = True,
    ) -> None:
        self.location = location
        self._metadata = metadata
        self._new_layout = layout
        self._store_text = store_text
        self._lock = ForkLock()
        self._snapshot = SpaceSnapshot()
        self._looked = float("-inf")  # when the table's versions were last listed
        self._salvage = Salvage(location, self._open_sound)
        self._compact_automatically = compact_automatically
        self._staged: Staged | None = None
        self.compactor = Compactor(location, self.refresh)

    @property
    def name(self) -> str:
        """The table's name."""
        return self.location.name

    @property
    def metadata(self) -> SpaceMetadata:
        """What the table says about itself, or will.

        Raises:
            ConfigError: There is no table.
            CacheError: It cannot be opened, or is no space of embcache.
        """
        if self._metadata is None:
            self._metadata = self.open().metadata
        return self._metadata

    @property
    def identity(self) -> Identity:
        """What all its rows have in common."""
        return self.metadata.identity

    @cached_property
    def canaries(self) -> Space:
        """A space of the same kind in this one's folder, with the canaries' rows."""
        return Space(
            self.location.table(CANARIES),
            self.metadata,
            layout=self.layout,
            store_text=self.stores_text,
            compact_automatically=self._compact_automatically,
        )

    @property
    def stores_text(self) -> bool:
        """Whether rows carry their texts."""
        names = self._snapshot.columns
        return self.layout.texts[0] in names if names else self._store_text

    @property
    def snapshot(self) -> SpaceSnapshot:
        """What the last `refresh`, or `add`, saw."""
        return self._snapshot

    @property
    def layout(self) -> Layout:
        """Whether it holds vectors or scores."""
        if self._snapshot.reader is not None:
            return self._snapshot.reader.layout
        if self.location.has_table():
            try:
                return self.open().layout
            except CacheError as error:
                if self._metadata is None or not is_damage(error):
                    raise  # else whoever made this handle knows the layout as well as the identity
        return self._new_layout

    def __repr__(self) -> str:
        return f"<Space {self.name} in {self.location.parent}>"

    def open(self, version: int | None = None) -> Reader:
        """A version, to be read from end to end: its keys are not indexed.

        For as long as the reader lives, automatic compaction leaves its files alone.

        Args:
            version: Which; None for the latest.

        Raises:
            ConfigError: There is no table.
            CacheFormatError: It is of a newer format, or no space of embcache.
            DamagedSpaceError: Lance cannot open it, or it is of another identity.
        """
        folder = self.location.folder
        with in_turn(folder, committing=False):  # none of its files go meanwhile
            dataset = open_table(self.location, version)
            held = pin(folder, dataset.version)
        reader = Reader(dataset, self.location, held)
        self._check_identity(reader.metadata)
        last = self._snapshot.reader
        # In a store it takes requests, and no bit flips there without its being noticed.
        if folder is not None and (last is None or last.schema != reader.schema):
            reader.try_reading()
        return reader

    def salvage(self, *, write: bool, values: bool) -> SpaceSnapshot:
        """Go on with what of a damaged table can be read, see `embcache.store.salvage`.

        What is found to be damaged stays left out in all later snapshots of this handle.

        Args:
            write: Whether manifests that cannot be used may be set aside, so that the table can be
                written again.
            values: Whether values could not be read, not only keys.

        Returns:
            What of it can be used, with a warning that says what cannot.

        Raises:
            CacheError: It is no damage, or goes on.
        """
        with self._lock:
            self._snapshot = self._salvage.snapshot(self._snapshot, write=write, values=values)
            return self._snapshot

    def refresh(self, *, now: bool = False) -> SpaceSnapshot:
        """See what was committed by now, by whatever process.

        In a store, where to look takes a request, it is enough to have looked some seconds ago.

        Args:
            now: Whether to look in any case; in a store, at the table itself: the newest version
                may be of another table with its name, of as many versions.

        Returns:
            The same object as before where nothing was.

        Raises:
            CacheFormatError: The table is of a newer format, or no space of embcache.
            CacheError: It is of another identity, or cannot be read.
        """
        with self._lock:
            recent = time.monotonic() - self._looked < FRESH_SECONDS
            if now or not recent or self.location.folder is not None:
                self._snapshot = self._latest(anew=now)
                self._looked = time.monotonic()
            return self._snapshot

    def refresh_or_salvage(self, *, write: bool, now: bool = False) -> SpaceSnapshot:
        """As `refresh`; where the table is damaged, go on with what of it can be read.

        Args:
            write: As `salvage`.
            now: As `refresh`.
        """
        try:
            return self.refresh(now=now)
        except CacheError as error:
            if not is_damage(error):
                raise
            return self.salvage(write=write, values=False)

    def stage(self, take: Staged) -> None:
        """Commit no rows from now on: `add` writes their files, which somebody else commits.

        Many writers of one table get in each other's way; one that commits for all does not. What
        is staged is in no snapshot before it is committed.

        Args:
            take: Is called with each file, in the thread that adds.
        """
        self._staged = take

    @property
    def stages(self) -> bool:
        """Whether rows that are added are staged, and not in the snapshot afterwards."""
        return self._staged is not None

    def add_staged(self, staged: Sequence[str]) -> list[lance.LanceFragment]:
        """Commit files that handles of this space have staged, all at once.

        Args:
            staged: As they were handed on.

        Returns:
            The fragments of the version with them.

        Raises:
            CacheWriteError: The space cannot be written, or was removed meanwhile.
        """
        with lance_errors("Writing to", self.location, WRITE_FIX):
            if not self.location.has_table():
                raise self._removed()
            return commits.add_staged(self.location, staged).get_fragments()

    def keep_index(self) -> None:
        """Keep the index of the last `refresh` on disk, if opening the space again would take long.

        It is written anew when a fifth of its keys are new, so five times in the end for all.
        """
        with self._lock:
            last, folder = self._snapshot, self.location.folder
            fresh = len(last.index) - last.kept
            if (
                folder is None
                or self._staged is not None  # whoever commits keeps it
                or fresh < max(index_file.LEAST_KEYS, last.kept // 4)
                or self._salvage.lost
            ):
                return
            try:
                index_file.save(folder, [mark for mark, _ in last.shape], last.index)
            except OSError as error:  # the cache is as good without
                logger.info("The index of %s is not kept: %s", self.location, error)
            self._snapshot = SpaceSnapshot(last.reader, last.index, last.shape, len(last.index))

    def add(self, rows: Rows) -> SpaceSnapshot:
        """Commit the rows whose keys are not there yet, see `Store.add`."""

        def make(schema: pa.Schema, new: Positions) -> pa.Table:
            return rows.take(new).to_arrow(schema, store_text=self._store_text)

        return self._add(rows.keys, rows.values.shape[1], make)[0]

    def add_arrow(self, rows: pa.Table, dim: int) -> int:
        """Commit rows of another table as they are, those whose keys are not there yet.

        Args:
            rows: With key, value and checksum. Columns that the space has not are left out; those
                that they have not are null.
            dim: Components of their vectors; 1 for scores.

        Returns:
            How many were committed.

        Raises:
            CacheError: As `add`.
        """

        def make(schema: pa.Schema, new: Positions) -> pa.Table:
            return conform(rows.take(pa.array(new)), schema)

        return self._add(batch_keys(rows), dim, make)[1]

    def append(self, rows: pa.Table, dim: int) -> None:
        """Commit rows without looking whether their keys are there: no row of the space is read.

        For repairs: where a fragment is damaged, `add_arrow` fails on the keys in it.

        Args:
            rows: As `add_arrow`.
            dim: As `add_arrow`.

        Raises:
            CacheError: The space cannot be written, or has another dimension.
        """
        with self._lock, lance_errors("Writing to", self.location, WRITE_FIX):
            if not self.location.has_table():
                self._create(dim, beside=True)
            table = self._opened_to_write()
            self._check_schema(table.schema, dim)
            commits.append(self.location, table, conform(rows, table.schema))

    def drop_fragments(self, reader: Reader, fragments: Sequence[int]) -> None:
        """Commit that some fragments are deleted: of each all rows, none of which is read.

        Args:
            reader: The version that they are of.
            fragments: Their ids.

        Raises:
            CacheError: Another process changed them since, or the space cannot be written.
        """
        commits.drop_fragments(self.location, reader.dataset.version, fragments)

    def drop(self, keys: Keys) -> None:
        """Delete every row of these keys, in as few transactions as it takes."""
        if self._salvage.lost:  # Lance would look for the keys in those files too, and fail
            self.delete_rows(self.refresh().row_ids(keys))
            return
        raw = key_bytes.to_bytes(keys)
        literals = [f"X'{raw[at : at + 16].hex()}'" for at in range(0, len(raw), 16)]
        self._delete("key", literals, _DELETE_KEYS)

    def delete_rows(self, row_ids: npt.NDArray[np.uint64]) -> None:
        """Delete rows by stable row id, whatever another process's compaction does meanwhile.

        Args:
            row_ids: `(n,) uint64`, as `Verified.row_ids`.

        Raises:
            CacheError: Lance cannot write the table.
        """
        self._delete("_rowid", [str(row_id) for row_id in row_ids.tolist()], _DELETE_ROWS)

    def optimize(self, older_than: timedelta) -> None:
        """Have Lance rewrite small fragments into large ones and remove old versions' files.

        Raises:
            RuntimeError: Another process committed what conflicts with it, at the same time.
        """
        with warnings.catch_warnings(), in_turn(self.location.folder):
            # Zero is what the caller asked for, and was told about.
            warnings.filterwarnings("ignore", r"optimize\(cleanup_older_than=0\)", UserWarning)
            self.table().optimize(cleanup_older_than=older_than)

    def table(self) -> lancedb.table.Table:
        """LanceDB's own handle, always at the latest version."""
        return _connect(self.location.parent).open_table(self.name)

    def _latest(self, *, anew: bool) -> SpaceSnapshot:
        """The latest version's snapshot: the last one, if there is no newer version."""
        last, remote = self._snapshot, self.location.folder is None
        # In a store, to look for a table first takes a request more.
        if not remote and not self.location.has_table():
            return last if last.reader is None else SpaceSnapshot()
        if last.reader is not None and not (anew and remote) and self._is_latest(last.reader):
            return last
        # Off screen as a whole: going there and back for each batch of keys takes six system calls,
        # and after each a thread that computes keys meanwhile keeps Python for 5 ms. In a store it
        # may take seconds, and who starts a process meanwhile would not see its errors.
        with nullcontext() if remote else panics.off_screen():
            try:
                reader = self._open_sound()
            except ConfigError:  # there is none yet, or it was removed just now
                return last if last.reader is None else SpaceSnapshot()
            return last if last.is_of(reader) else self._indexed(reader)

    def _indexed(self, reader: Reader) -> SpaceSnapshot:
        with lance_errors("Reading the keys of", self.location, READ_FIX):
            return indexed(self._snapshot, reader, self._salvage.lost)

    def _is_latest(self, reader: Reader) -> bool:
        with lance_errors("Opening", self.location, READ_FIX):
            try:
                latest: int = reader.dataset.latest_version
            except Exception as error:
                if self.location.folder is not None or self.location.is_outage(error):
                    raise  # to look again would take as long again
                if not self.location.has_table():
                    return False  # it was removed; to open it says so
                raise
            return latest == reader.dataset.version and not reader.is_gone

    def _open_sound(self, version: int | None = None) -> Reader:
        """A version whose schema is that of its data files, as far as that was not seen before."""
        return self._sound(self.open(version))

    def _sound(self, reader: Reader) -> Reader:
        last = self._snapshot.reader
        if last is None or not len(last) or last.schema != reader.schema:
            reader.check_fit()
        return reader

    def _add(
        self, keys: Keys, dim: int, make: Callable[[pa.Schema, Positions], pa.Table]
    ) -> tuple[SpaceSnapshot, int]:
        """Commit the rows that `make` makes of the numbers of those that are new."""
        with self._lock:  # no other thread of this process between look-up and commit
            with self._out_of_reach():
                snapshot = self.refresh()
            first, _ = unique_keys(keys)
            new = first[snapshot.find(keys[first]) < 0]
            if len(new) and self.location.folder is None:
                # Appended to is the version that was read, and that may be of a table that was
                # removed since, though another one is there with its name.
                with self._out_of_reach():
                    snapshot = self.refresh(now=True)
                new = first[snapshot.find(keys[first]) < 0]
            if not len(new):
                return snapshot, 0
            with lance_errors("Writing to", self.location, WRITE_FIX):
                table = self._open_or_create(dim, snapshot.reader)
                self._check_schema(table.schema, dim)
                rows = make(table.schema, new)
                if self._staged is not None:
                    self._staged(commits.stage(table, rows), keys[new])
                    return snapshot, len(new)
                written = commits.append(self.location, table, rows)
            with self._out_of_reach():
                snapshot = self._see(written)
            self._committed(snapshot.reader)
            return snapshot, len(new)

    @contextmanager
    def _out_of_reach(self) -> Iterator[None]:
        """To a writer, a store out of reach is one that cannot be written: a run may go on."""
        try:
            yield
        except UnreachableError as error:
            raise CacheWriteError(f"Writing to {self.location} failed. {error}") from error

    def _open_or_create(self, dim: int, reader: Reader | None) -> lance.LanceDataset:
        if self.location.folder is None and reader is not None:
            return reader.dataset  # Lance itself looks for newer versions, for the commit
        if not self.location.has_table():
            self._create(dim)
        return self._opened_to_write()

    def _opened_to_write(self) -> lance.LanceDataset:
        try:
            return open_table(self.location)
        except ConfigError as error:
            raise self._removed() from error

    def _removed(self) -> CacheWriteError:
        return CacheWriteError(
            f"Writing to {self.location} failed: it was there, and was removed meanwhile. "
            f"{WRITE_FIX.text}"
        )

    def _see(self, written: lance.LanceDataset) -> SpaceSnapshot:
        """The snapshot after a commit: in a store it is known what was committed, and onto what."""
        if self.location.folder is not None:
            return self.refresh(now=True)
        self.location.watch(written)
        check_manifest(written, self.location)
        self._snapshot = self._indexed(self._sound(Reader(written, self.location)))
        self._looked = time.monotonic()
        return self._snapshot

    def _create(self, dim: int, *, beside: bool = False) -> None:
        """Make the table, unless another process does: what that one wrote stays.

        Data files that lie there without a manifest are set aside, or with `beside` stay.
        """
        self.location.check_table()  # Lance would create it where a link points to
        if not beside:
            self._salvage.clear_place()
        schema = space_schema(self._new_layout, dim, self.metadata, store_text=self._store_text)
        commits.create(self.location, schema)

    def _delete(self, column: str, literals: list[str], at_once: int) -> None:
        with lance_errors("Deleting rows from", self.location, WRITE_FIX):
            table = self._opened_to_write()
            for at in range(0, len(literals), at_once):
                commits.delete(self.location, table, column, literals[at : at + at_once])
        self._looked = float("-inf")
        self._committed(self.open())

    def _committed(self, reader: Reader | None) -> None:
        # Not while files of it cannot be read: Lance would fail at them, again and again.
        if self._compact_automatically and reader is not None and not self._salvage.lost:
            self.compactor.after_commit(reader.fragments)

    def _check_schema(self, schema: pa.Schema, dim: int) -> None:
        self._check_identity(read_metadata(schema, str(self.location)))
        if value_dim(schema) != dim:
            # What was read before says who is wrong: the table's manifest, or what is to be added.
            kind = DamagedSpaceError if self._snapshot.dim == dim else CacheError
            raise kind(
                f"{self.location} holds vectors of {value_dim(schema)} components, and those to be "
                f"added have {dim}. One identity cannot have two dimensions: the table is not "
                "what its metadata says. Move the folder away; its texts are encoded again."
            )

    def _check_identity(self, found: SpaceMetadata) -> None:
        if self._metadata is not None and found.identity != self._metadata.identity:
            raise DamagedSpaceError(
                f"{self.location} holds another identity than its name says.\n"
                f"  there:  {found.identity.to_json()}\n"
                f"  wanted: {self._metadata.identity.to_json()}\n"
                "Was it renamed or copied by hand? Move the folder away."
            )


def _connect(location: Location) -> lancedb.DBConnection:
    import lancedb  # takes a second

    # An interval of zero: always the latest version, whatever other processes do.
    return lancedb.connect(
        str(location),
        read_consistency_interval=timedelta(0),
        storage_options=location.lance_options,
    )
