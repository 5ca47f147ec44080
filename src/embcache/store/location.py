"""Where a cache, or a table in it, lies; and what goes wrong there.

The one place that knows that a location is a folder of this machine. Everything above asks a
`Location` and takes its text for messages.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from embcache.errors import (
    CacheError,
    CacheWriteError,
    ConfigError,
    DamagedSpaceError,
    EmbcacheError,
)
from embcache.identity.home import user_path
from embcache.store import aside, leftovers, manifests
from embcache.store.forks import in_use
from embcache.store.options import checked_options
from embcache.store.trial import try_commit
from embcache.store.untrusted import check_folder


class Fix(NamedTuple):
    """What to do where Lance fails at something.

    Attributes:
        text: For people, sentences.
        error: What the failure is raised as.
    """

    text: str
    error: type[CacheError]


READ_FIX = Fix(
    "If its files are damaged: `check_space` says which, and `merge_caches` into a new cache "
    "saves the rows of the others. Or move the folder away: its texts are encoded again.",
    DamagedSpaceError,
)
WRITE_FIX = Fix(
    "Rows committed before are safe and the next run goes on from there. Is the disk full, the "
    "folder not writable, or a file damaged (`check_space`)?",
    CacheWriteError,
)

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")  # one slash: a Path has lost the other
_TABLE = ".lance"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust says it
_NO_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
_CONFLICT = ("commit conflict", "Too many concurrent writers")  # in Lance's message


@dataclass(frozen=True)
class Location:
    """The place of a cache, or of a table in it.

    Attributes:
        uri: Absolute path of a folder on this machine.
        storage_options: What a store needs to be opened; never part of a message.
    """

    uri: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str] | Location,
        storage_options: Mapping[str, str] | None = None,
        *,
        argument: str = "cache_path",
    ) -> Location:
        """The location that a user means.

        Args:
            path: A folder, relative to the working directory or not; or a Location as it is.
            storage_options: What the store needs to be opened, strings by name; a Location has its
                own.
            argument: What errors call `path`.

        Raises:
            ConfigError: The path is empty, a URL, or the home of a user who is not known; or a
                storage option is no string.
        """
        if isinstance(path, Location):
            return path
        given = os.fspath(path)
        if not given:
            raise ConfigError(f"{argument} is empty. Give a directory, or None for no cache.")
        if _URL.match(given):
            raise ConfigError(
                f"{argument}={given!r} is a URL. Give a directory of this machine; copy the cache "
                "to move it."
            )
        absolute = user_path(given, argument).absolute()  # whatever the caller changes to later
        return cls(str(absolute), checked_options(storage_options))

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part, of a table without its ending."""
        return self._path.name.removesuffix(_TABLE)

    @property
    def parent(self) -> Location:
        """What it lies in: of a table, its cache."""
        return Location(str(self._path.parent), self.storage_options)

    def table(self, name: str) -> Location:
        """The place of a table in this cache, whether there is one or not.

        Raises:
            ConfigError: The name would be a place outside of the cache.
        """
        if Path(name).name != name or "\0" in name:
            raise ConfigError(f"{name!r} is no name of a table in {self}: it is a path.")
        return Location(str(self._path / f"{name}{_TABLE}"), self.storage_options)

    def within(self, path: str) -> Location:
        """What a path means that is relative to this place.

        Raises:
            ConfigError: It begins with the home of a user who is not known.
        """
        return Location(str(self._path / user_path(path, "space")), self.storage_options)

    @property
    def is_table(self) -> bool:
        """Whether it is called as tables are, whether there is one or not."""
        return self._path.suffix == _TABLE

    def same_as(self, other: Location) -> bool:
        """Whether both are one place, links followed."""
        return self._path.resolve() == other._path.resolve()

    def tables(self) -> list[Location]:
        """Everything in this cache that a table was ever committed to, by name.

        A name that is not printable is none of embcache's: a line of output that says what it
        likes. It is passed over; named by its path, it is refused.
        """
        paths = (path for path in self._path.glob(f"*{_TABLE}") if path.name.isprintable())
        found = [Location(str(path), self.storage_options) for path in paths]
        return sorted((one for one in found if one.has_table()), key=str)

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self._path.is_dir()

    def caches(self) -> list[str]:
        """Names of the folders here that hold tables."""
        folders = {table.parent for table in self._path.glob(f"*/*{_TABLE}")}
        shown = {folder.name for folder in folders if not folder.name.startswith(".")}
        return sorted(name for name in shown if not name.endswith(_TABLE))  # canaries

    def holds(self, *names: str) -> bool:
        """Whether files of all these names are here."""
        return all((self._path / name).exists() for name in names)

    def has_table(self) -> bool:
        """Whether a table was ever committed here; a kill during creation leaves less."""
        return manifests.has_manifest(self._path)

    def versions(self) -> list[int]:
        """Versions of this table that have a manifest, newest first."""
        return list(manifests.versions(self._path))

    def is_lost_table(self) -> bool:
        """Whether rows are here and no manifest is, so that no table is."""
        return self.is_table and not self.has_table() and bool(manifests.data_paths(self._path))

    def lost_tables(self) -> list[Location]:
        """Folders of this cache that were tables before all their manifests were lost, by name."""
        found = sorted(path.stem for path in self._path.glob(f"[!.]*{_TABLE}"))
        return [table for table in map(self.table, found) if table.is_lost_table()]

    def left_aside(self) -> list[str]:
        """Folders of this cache with what was set aside as damaged."""
        return [str(path) for path in aside.left(self._path)]

    def size(self) -> int:
        """Bytes of all files here; those that another process removes meanwhile are left out."""
        total = 0
        for root, _, names in os.walk(self._path):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(root, name)).st_size
        return total

    def check_folder(self) -> None:
        """Refuse a cache's place that is no folder.

        Raises:
            CacheError: It is a file.
        """
        if self._path.exists() and not self._path.is_dir():
            raise CacheError(
                f"cache_path={self.uri!r} is a file; a cache is a directory. Give another path, or "
                "move the file away."
            )

    def try_writing(self) -> None:
        """Make the folder if need be, and write to it, so that no run finds out after an hour.

        Raises:
            CacheWriteError: It cannot be written.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path):
                pass
        except OSError as error:
            raise CacheWriteError(
                f"cache_path={self.uri!r} cannot be written: {error.strerror or error}. Give a "
                "directory that can, or read_only=True to only read what is there."
            ) from error

    def try_committing(self) -> None:
        """Do with files what a commit to this table does, whether there is one by now or not.

        A cache's folder can be written where a table in it cannot: another user's, say. It takes
        a millisecond and leaves nothing behind.

        Raises:
            CacheWriteError: A commit would fail.
            CacheError: It would reach what is not the table's, see `untrusted`.
        """
        check_folder(self._path)
        try_commit(self._path)

    @contextmanager
    def made_elsewhere(self) -> Iterator[Location]:
        """A hidden place for this table, moved here at the end, if nothing is here by then.

        In one step: a reader, or another process that makes the same table, sees all or nothing.
        """
        parent = self._path.parent
        parent.mkdir(parents=True, exist_ok=True)  # it may have been deleted since it was made
        with tempfile.TemporaryDirectory(prefix=leftovers.CREATING, dir=parent) as folder:
            hidden = Path(folder) / self._path.name
            yield Location(str(hidden), self.storage_options)
            with suppress(OSError):  # a table is there already, or what a killed creation left
                hidden.rename(self._path)

    def remove(self) -> None:
        """Delete a table's folder. A kill on the way leaves the whole table, or none.

        Raises:
            CacheError: It is a link or no table's folder, or the file system refuses.
        """
        if self._path.is_symlink() or not self.is_table:
            raise CacheError(f"{self} is a link or no table's folder; remove it by hand.")
        try:
            # Out of the cache's sight in one step; a table without half its files would be damaged.
            with tempfile.TemporaryDirectory(
                prefix=leftovers.REMOVED, dir=self._path.parent
            ) as grave:
                self._path.rename(Path(grave) / self._path.name)
        except OSError as error:
            raise CacheError(f"Removing {self} failed: {error.strerror or error}.") from error

    @property
    def folder(self) -> Path:
        """The folder, for the store's modules that work on a table's files: locks, compaction."""
        return self._path

    @property
    def _path(self) -> Path:
        return Path(self.uri)


@contextmanager
def lance_errors(doing: str, where: Location, fix: Fix) -> Iterator[None]:
    """Wrap anything that Lance raises, panics of its native code included, in a `CacheError`.

    Every call into Lance is made within it.

    Args:
        doing: What was being done, "Opening", say.
        where: The table.
        fix: What to do about it, and the error's class.

    Raises:
        CacheError: Lance failed: `fix.error`; but CacheError itself where reading fails for what
            is no damage (too many open files, no permission). Errors of embcache's own pass as
            they are.
    """
    try:
        with in_use():
            yield
    except EmbcacheError:
        raise
    except BaseException as error:
        if not is_of_lance(error):
            raise
        if isinstance(error, Exception):
            said = f"{type(error).__name__}: {error}"
        else:
            said = f"Lance panicked: {error}"
        kind = CacheError if fix is READ_FIX and _is_no_damage(error) else fix.error
        raise kind(f"{doing} {where} failed: {said}. {fix.text}") from error


def is_conflict(error: BaseException) -> bool:
    """Whether Lance refused a commit because of what other processes have committed meanwhile."""
    return any(said in str(error) for said in _CONFLICT)


def despite_conflicts(commit: Callable[[], object], attempts: int) -> None:
    """Commit; again, where Lance refuses it because of what others have committed meanwhile.

    Args:
        commit: What commits, from the beginning each time.
        attempts: How often, at most; the last one's error is raised.
    """
    for attempt in range(attempts):
        try:
            commit()
            return
        except (RuntimeError, OSError, ValueError) as error:
            if not is_conflict(error) or attempt == attempts - 1:
                raise
            time.sleep(0.1 * 2**attempt)


def is_of_lance(error: BaseException) -> bool:
    """Whether Lance may have raised it: any Exception, and panics of its native code.

    pyo3's PanicException derives from BaseException and cannot be imported by name.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _is_no_damage(error: BaseException) -> bool:
    """Whether files may be whole that cannot be read now, or not by this user."""
    found = _OS_ERROR.search(str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return isinstance(error, MemoryError) or number in _NO_DAMAGE
