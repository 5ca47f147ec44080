"""A place that is a folder of this machine, or of a file system that it has mounted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import lance

from embcache.errors import CacheError, CacheWriteError, UnreachableError
from embcache.identity.home import user_path
from embcache.store import aside, leftovers, manifests
from embcache.store.location import TABLE, Location
from embcache.store.refusals import way_out
from embcache.store.trial import try_commit
from embcache.store.untrusted import check_folder

Looking = TypeVar("Looking", bound=Callable[..., Any])


def _looks(method: Looking) -> Looking:
    """Have what the system refuses to a method that only looks raised as an UnreachableError."""

    @wraps(method)
    def guarded(self: Folder, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except OSError as error:
            raise UnreachableError(
                f"{self} cannot be looked into: {error.strerror or error}. "
                f"{way_out(error.errno) or 'Mend that, or give another cache_path.'}"
            ) from error

    return cast("Looking", guarded)


@dataclass(frozen=True)
class Folder(Location):
    """A folder; for the methods see `Location`."""

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._path

    @property
    def parent(self) -> Location:
        """What it lies in."""
        return self._at(str(self._path.parent))

    def watch(self, dataset: lance.LanceDataset) -> None:
        """Nothing: there is no traffic."""

    def within(self, path: str) -> Location:
        """What a path means that is relative to this folder."""
        return self._at(str(self._path / user_path(path, "space")))

    @_looks
    def same_as(self, other: Location) -> bool:
        """Whether both are one folder, links followed."""
        return other.folder is not None and self._path.resolve() == other.folder.resolve()

    @_looks
    def named_as_tables(self) -> list[Self]:
        """Everything in it that is called as tables are."""
        paths = (path for path in self._path.glob(f"*{TABLE}") if path.name.isprintable())
        return sorted((self._at(str(path)) for path in paths), key=str)

    @_looks
    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self._path.is_dir()

    @_looks
    def caches(self) -> list[str]:
        """Names of the folders in it that hold tables."""
        folders = {table.parent for table in self._path.glob(f"*/*{TABLE}")}
        shown = {folder.name for folder in folders if not folder.name.startswith(".")}
        return sorted(name for name in shown if not name.endswith(TABLE))  # canaries

    @_looks
    def holds(self, *names: str) -> bool:
        """Whether files of all these names are in it."""
        return all((self._path / name).exists() for name in names)

    @_looks
    def has_table(self) -> bool:
        """Whether there is a manifest."""
        return manifests.has_manifest(self._path)

    @_looks
    def versions(self) -> list[int]:
        """Versions that have a manifest, newest first."""
        return list(manifests.versions(self._path))

    @_looks
    def is_lost_table(self) -> bool:
        """Whether data files are here and no manifest."""
        if not self.is_table or self._path.name.startswith(".") or self.has_table():
            return False
        return bool(manifests.data_paths(self._path))

    @_looks
    def left_aside(self) -> list[str]:
        """Folders in it with what was set aside as damaged."""
        return [str(path) for path in aside.left(self._path)]

    @_looks
    def size(self) -> int:
        """Bytes of all files; those that another process removes meanwhile are left out."""
        total = 0
        for root, _, names in os.walk(self._path):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(root, name)).st_size
        return total

    @_looks
    def check(self) -> None:
        """Refuse a file, and a link to nothing."""
        if self._path.is_symlink() and not self._path.exists():
            raise CacheError(
                f"cache_path={self.uri!r} is a symbolic link to a place where nothing is: "
                f"{os.readlink(self._path)!r}. Is that disk mounted? Make the directory, or give "
                "another path."
            )
        if self._path.exists() and not self._path.is_dir():
            raise CacheError(
                f"cache_path={self.uri!r} is a file; a cache is a directory. Give another path, or "
                "move the file away."
            )

    @_looks
    def check_table(self) -> None:
        """Refuse links, pipes and devices in it."""
        check_folder(self._path)

    def try_writing(self) -> None:
        """Make it if need be, and write to it."""
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
        """Do with files what a commit does."""
        self.check_table()
        try_commit(self._path)

    def remove(self) -> None:
        """Delete a table's folder."""
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

    def remove_file(self, path: str) -> None:
        """Delete a file in it; nothing is said where there is none."""
        (self._path / path).unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return Path(self.uri)
