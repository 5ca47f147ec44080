"""Going on with a damaged table: what can be read is used, the rest is missing.

Two kinds of damage. Data files (and the deletion files beside them) that cannot be read cost their
fragments' rows: these are left out of the index, and later rows of the same keys, in other files,
count instead. A manifest that cannot be read costs the whole table, unless an older version has
another: that is used then, and the newer manifests are set aside, so that the table can be written
again. Nothing is deleted; `check_space` with fix=True mends what is left out here.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import lance

from embcache.errors import (
    CacheError,
    CacheFormatError,
    CacheWriteError,
    DamagedSpaceError,
    NewerFormatError,
)
from embcache.store.aside import Aside, read_ends
from embcache.store.lance_errors import READ_FIX, WRITE_FIX, cause_of, lance_errors
from embcache.store.location import Location
from embcache.store.locks import in_turn, only_one
from embcache.store.manifests import data_path, manifest, versions
from embcache.store.reader import NO_MANIFEST, Reader
from embcache.store.snapshot import Mark, SpaceSnapshot, fragment_marks, indexed
from embcache.store.versions import can_be_opened

logger = logging.getLogger(__name__)

_MOST_PASSED = 1000  # versions; each takes some milliseconds
_ATTEMPTS = 5  # at a table in which other processes set things aside, or compact, meanwhile
_MEND = "`check_space` with fix=True mends it."
_BRING_BACK = (
    "`check_space` with fix=True, and then `merge_caches`, bring back what of it can be read."
)


def is_damage(error: CacheError) -> bool:
    """Whether an error means that files are not what was written, so that encoding again helps."""
    damaged = isinstance(error, (DamagedSpaceError, CacheFormatError))
    return damaged and not isinstance(error, NewerFormatError)


class Salvage:
    """What is known of the damage of one table.

    Args:
        location: The table.
        open_version: A method that opens a version of it, None for the latest; it raises a
            CacheError where that version is not to be used.

    Attributes:
        location: As given.
        lost: Marks of the fragments that cannot be read.
    """

    def __init__(self, location: Location, open_version: Callable[[int | None], Reader]) -> None:
        self.location = location
        self.lost: set[Mark] = set()
        # Weakly: in a cycle, a handle that nobody has any more would go on pinning its version.
        self._open_version = weakref.WeakMethod(open_version)
        self._told: set[str] = set()
        self._versions: list[int] = []

    def snapshot(self, last: SpaceSnapshot, *, write: bool, values: bool) -> SpaceSnapshot:
        """The newest version that can be used, without what of it cannot be read.

        Args:
            last: The last snapshot, whose index is extended where its fragments are unchanged.
            write: Whether manifests that cannot be used are set aside.
            values: Whether values could not be read, not only keys.

        Raises:
            CacheError: The table cannot be read for another reason than damage, or is damaged
                anew while this looks.
        """
        for _ in range(_ATTEMPTS):
            reader = self._usable(write=write)
            if reader is None:
                self._give_up(write=write)
                return SpaceSnapshot()
            if values:
                names = ["key", reader.layout.value, "checksum"]
                if self._lose(reader, names):
                    continue
                values = False
            try:
                with lance_errors("Reading the keys of", self.location, READ_FIX):
                    return indexed(last, reader, self.lost)
            except DamagedSpaceError:
                if not self._lose(reader, ["key"]) and not self._outdated():
                    raise
        raise DamagedSpaceError(
            f"{self.location} changes or fails again and again while it is read. {READ_FIX.text}"
        )

    def _give_up(self, *, write: bool) -> None:
        """Make room for a new table, where data files are left of one that has no manifests."""
        if not self.location.is_lost_table():
            return
        what = f"{self.location} {NO_MANIFEST}"
        if not write:
            self._tell(f"{what} {self._instead(None)} Nothing is changed, as nothing is written.")
            return
        try:
            with self._alone():
                if self.location.is_lost_table():  # another process may have been here
                    assert self.location.folder is not None  # only of folders is it known
                    aside = Aside(self.location.folder)
                    aside.move_table()
                    self._tell(
                        f"{what} They are set aside, not deleted: {aside.folder}. "
                        f"{self._instead(None)} {_BRING_BACK}"
                    )
        except CacheWriteError as refused:
            self._tell(f"{what} {self._instead(None)} Nothing is written: {refused} {_MEND}")

    def _lose(self, reader: Reader, columns: list[str]) -> int:
        """Find fragments that cannot be read; returns how many of them are new."""
        found = dict(_unreadable(reader, columns, self.lost))
        if not found or self._outdated():  # then a compaction may have removed their files
            return 0
        self.lost.update(found)
        rows = sum(int(mark[1]) for mark in found)  # type: ignore[call-overload]
        self._tell(
            f"{len(found)} of {len(reader.fragments)} data files of {self.location} cannot be "
            f"read ({next(iter(found.values()))}): their {rows:,} rows are taken for missing, "
            f"and encoded again where they are asked for. {_MEND}"
        )
        return len(found)

    def _usable(self, *, write: bool) -> Reader | None:
        """The newest version that can be used; None where there is none (any more)."""
        reader, damaged, error = self._newest()
        if error is None:
            return reader
        what = f"{cause_of(error)} {self._instead(reader)}"
        if not write:
            self._tell(f"{what} Nothing is changed, as nothing is written.")
            return reader
        try:
            with self._alone():
                reader, damaged, error = self._newest()  # another process may have been here
                if error is not None:
                    self._set_aside(reader, damaged, error)
                    reader = self._newest()[0]
        except CacheWriteError as refused:
            self._tell(f"{what} Nothing is written: {refused} {_MEND}")
        return reader

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else sets files of this cache aside meanwhile.

        Raises:
            CacheWriteError: That cannot be known.
        """
        with only_one(self.location.parent.folder) as alone:
            if not alone:
                raise CacheWriteError(
                    f"{self.location.parent} has no locks, so that two processes might set files "
                    "aside at once."
                )
            yield

    def _newest(self) -> tuple[Reader | None, list[int], CacheError | None]:
        """The newest usable version, the damaged ones above it, and what is wrong with the first.

        No version and no error: there is no table.
        """
        first: CacheError | None = None
        damaged: list[int] = []
        self._versions = self.location.versions()
        for version in self._versions:
            try:
                reader = self._open(version)
                if first is not None:  # what a newer one has told of need not be told again
                    self.lost.update(dict(_unreadable(reader, ["key"], self.lost)))
                if self._has_rows(reader) or (first is None and not reader.fragments):
                    return reader, damaged, first
                raise DamagedSpaceError(
                    f"{self.location}: none of the data files of version {version} can be read."
                )
            except CacheError as error:
                if not is_damage(error):
                    raise
                if not self._is_there(version):  # on a network file system, it may be listed still
                    continue
                damaged.append(version)
                first = first or error
        return None, damaged, first

    def _is_there(self, version: int) -> bool:
        folder = self.location.folder
        return folder is None or can_be_opened(
            versions(folder).get(version, manifest(folder, version))
        )

    def _has_rows(self, reader: Reader) -> bool:
        return any(mark not in self.lost for mark in fragment_marks(reader))

    def _set_aside(self, reader: Reader | None, damaged: list[int], error: CacheError) -> None:
        """Move what is damaged out of the way; nobody else does so at the same time.

        Raises:
            CacheWriteError: The file system refuses, or refuses to read what would be set aside.
        """
        folder = self.location.folder
        assert folder is not None  # `_alone` has seen to that
        known = versions(folder)
        manifests = [known[version] for version in damaged if version in known]
        files = list(manifests)
        if reader is None:
            with suppress(CacheError):  # it is damaged
                newest = self._open(damaged[0])
                named = [file for one in newest.fragments for file in one.metadata.files]
                files += [data_path(folder, file) for file in named]
        try:
            read_ends(files)
        except OSError as refused:
            raise CacheWriteError(
                f"{refused.filename or folder} cannot be read: {refused.strerror or refused}. That "
                "says nothing of what it holds, so it is not set aside."
            ) from refused
        aside = Aside(folder)
        if reader is None:
            aside.move_table()
        for path in manifests if reader is not None else ():
            aside.move(path)
        self._tell(
            f"{cause_of(error)} {self._instead(reader)} What is damaged is set aside, not deleted: "
            f"{aside.folder}. {_BRING_BACK if reader is None else _MEND}"
        )
        if reader is not None:
            pass_by(self.location, reader.dataset.version, damaged[0])

    def _instead(self, reader: Reader | None) -> str:
        if reader is None:
            return "Its texts are encoded again."
        marks = zip(reader.fragments, fragment_marks(reader), strict=True)
        rows = sum(one.metadata.num_rows for one, mark in marks if mark not in self.lost)
        return (
            f"The newest version that can be read, {reader.dataset.version}, is used instead "
            f"({rows:,} rows), and what it has not is encoded again."
        )

    def _open(self, version: int) -> Reader:
        open_version = self._open_version()
        assert open_version is not None  # it is called by its owner's methods
        return open_version(version)

    def _outdated(self) -> bool:
        """Whether versions came since `_newest`, so that the files of older ones may be removed."""
        return self.location.versions()[:1] != self._versions[:1]

    def _tell(self, what: str) -> None:
        """Warn, of the same thing once."""
        if what.partition(" (")[0] not in self._told:
            self._told.add(what.partition(" (")[0])
            logger.warning("%s", what.strip())


def pass_by(location: Location, at: int, version: int) -> None:
    """Commit nothing until a table's version is above one that was set aside.

    Who has that in memory, from before the damage, would else take the next commit, of the same
    number, for it, and commit over its rows. Versions are counted one by one: one that is far above
    all others nobody ever had, and its file was made so that this would go on for ever.

    Args:
        location: The table.
        at: Its newest version now.
        version: The newest one that was set aside.

    Raises:
        CacheWriteError: The table cannot be written.
    """
    if version - at > _MOST_PASSED:
        return
    with lance_errors("Writing to", location, WRITE_FIX):
        while at <= version:
            nothing = lance.LanceOperation.Append([])
            with in_turn(location.folder):
                done = lance.LanceDataset.commit(
                    str(location), nothing, read_version=at, storage_options=location.lance_options
                )
            at = done.version


def _unreadable(reader: Reader, columns: list[str], known: set[Mark]) -> Iterator[tuple[Mark, str]]:
    """Fragments that cannot be read to their end, and why; those that are known are left out."""
    for fragment, mark in zip(reader.fragments, fragment_marks(reader), strict=True):
        if mark in known:
            continue
        try:
            reader.try_fragment(fragment, columns)
        except DamagedSpaceError as error:
            yield mark, str(error)
