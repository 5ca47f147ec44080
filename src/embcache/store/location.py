"""Where a cache, or a table in it, lies.

What is above asks a `Location` and takes its text for messages: whether it is a folder of this
machine (`folder.py`) or lies in an object store (`bucket.py`), only these two know.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import lance

from embcache.errors import ConfigError
from embcache.identity.home import absolute_path
from embcache.store.traffic import Traffic

# One slash: a Path has lost the other. " s3://" and "S3://" are meant as URLs, and refused as such.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
# Control characters, and bytes that are no UTF-8, as Python reads them.
_REFUSED = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
TABLE = ".lance"
"""The ending of tables' names."""


@dataclass(frozen=True)
class Location(ABC):
    """The place of a cache, or of a table in it: a `Folder`, or a place in a store, a `Bucket`.

    Attributes:
        uri: Absolute path of a folder on this machine, or a URL, without a slash at its end.
        storage_options: What a store needs to be opened, beside what the environment says; never
            part of a message.
    """

    uri: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        path: str | os.PathLike[str] | Location,
        storage_options: Mapping[str, str] | None = None,
        *,
        argument: str = "cache_path",
    ) -> Location:
        """The location that a user means.

        Args:
            path: A folder, relative to the working directory or not; a URL (s3://bucket/cache);
                or a Location as it is.
            storage_options: What a store needs to be opened, as Lance takes it; nothing is asked
                of it for a folder, and a Location has its own.
            argument: What errors call `path`.

        Raises:
            ConfigError: The path is empty, has characters that Lance refuses, is relative to a
                working directory that was removed, or in the home of a user who is not known; or it
                is a URL that is of no store or says more than a place.
        """
        from embcache.store.bucket import Bucket  # both are Locations
        from embcache.store.folder import Folder

        if isinstance(path, Location):
            return path
        given = os.fspath(path)
        if not given:
            raise ConfigError(f"{argument} is empty. Give a directory, or None for no cache.")
        options = checked_options(storage_options)
        if is_url(given):
            return Bucket.at(given, options, argument)
        absolute = str(absolute_path(given, argument))
        if (refused := _REFUSED.search(absolute)) is not None:
            raise ConfigError(
                f"{argument}={given!r} has the character {refused[0]!r} in its absolute path, "
                "which Lance refuses in names of folders. Give another directory."
            )
        return Folder(absolute, options)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part, of a table without its ending."""
        return self.uri.rpartition("/")[2].removesuffix(TABLE)

    @property
    def is_table(self) -> bool:
        """Whether it is called as tables are, whether there is one or not."""
        return self.uri.endswith(TABLE)

    def table(self, name: str) -> Self:
        """The place of a table in this cache, whether there is one or not.

        Raises:
            ConfigError: The name would be a place outside of the cache.
        """
        if Path(name).name != name or "\0" in name:
            raise ConfigError(f"{name!r} is no name of a table in {self}: it is a path.")
        return self._at(f"{self.uri.rstrip('/')}/{name}{TABLE}")

    def tables(self) -> list[Self]:
        """Everything in this cache that a table was ever committed to, by name; lost ones too."""
        named = self.named_as_tables()
        return [one for one in named if one.has_table() or one.is_lost_table()]

    def _at(self, uri: str) -> Self:
        """Another place, of the same store."""
        return type(self)(uri, self.storage_options)

    @property
    def folder(self) -> Path | None:
        """The folder, for what works on a table's files: locks, compaction; None in a store."""
        return None

    @property
    def lance_options(self) -> dict[str, str] | None:
        """What Lance's functions take as `storage_options`."""
        return None

    @property
    def traffic(self) -> Traffic:
        """What was sent to a store and from it on behalf of this object and all made of it."""
        return Traffic()

    @abstractmethod
    def watch(self, dataset: lance.LanceDataset) -> None:
        """Count what an open table does from now on as this place's traffic."""

    @property
    @abstractmethod
    def parent(self) -> Location:
        """What it lies in: of a table, its cache."""

    @abstractmethod
    def within(self, path: str) -> Location:
        """What a path means that is relative to this place.

        Raises:
            ConfigError: It begins with the home of a user who is not known.
        """

    @abstractmethod
    def same_as(self, other: Location) -> bool:
        """Whether both are one place, links followed."""

    @abstractmethod
    def named_as_tables(self) -> list[Self]:
        """Everything in this cache that is called as tables are, by name.

        A name that is not printable is none of embcache's: a line of output that says what it
        likes. It is passed over; named by its path, it is refused.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a folder; in a store, anything in it."""

    @abstractmethod
    def caches(self) -> list[str]:
        """Names of the folders here that hold tables."""

    @abstractmethod
    def holds(self, *names: str) -> bool:
        """Whether files of all these names are here."""

    @abstractmethod
    def has_table(self) -> bool:
        """Whether a table was ever committed here; a kill during creation leaves less."""

    @abstractmethod
    def versions(self) -> list[int]:
        """Versions of this table that have a manifest, newest first."""

    @abstractmethod
    def is_lost_table(self) -> bool:
        """Whether rows are here and no manifest is, so that no table is."""

    @abstractmethod
    def left_aside(self) -> list[str]:
        """Folders of this cache with what was set aside as damaged."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of all files here; in a store, of the table's newest version."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a cache's place that can be none, or is out of reach, within seconds.

        Raises:
            CacheError: It is a file.
            UnreachableError: The store does not answer, or refuses.
        """

    @abstractmethod
    def check_table(self) -> None:
        """Refuse a table that is not all in its own place, see `untrusted`.

        Raises:
            CacheError: It is not.
        """

    @abstractmethod
    def try_writing(self) -> None:
        """Make the folder if need be, and write to it, so that no run finds out after an hour.

        Raises:
            CacheWriteError: It cannot be written.
        """

    @abstractmethod
    def try_committing(self) -> None:
        """Do with files what a commit to this table does, whether there is one by now or not.

        A cache's folder can be written where a table in it cannot: another user's, say. It takes
        a millisecond, in a store two requests, and leaves nothing behind.

        Raises:
            CacheWriteError: A commit would fail.
            CacheError: It would reach what is not the table's, see `untrusted`.
        """

    @abstractmethod
    def remove(self) -> None:
        """Delete a table. A kill on the way leaves the whole table, or none.

        Raises:
            CacheError: It is a link or no table's folder, or the store refuses.
        """

    def remove_file(self, path: str) -> None:
        """Delete a file of this table that no version names.

        Args:
            path: Within the table.
        """
        raise NotImplementedError

    def is_outage(self, error: BaseException) -> bool:
        """Whether an error of Lance says that the store did not answer, or refused."""
        return False

    def without_secrets(self, text: str) -> str:
        """A text without the values of credentials."""
        return text


def is_url(path: str) -> bool:
    """Whether a path is a URL, of a store or not."""
    return _URL.match(path) is not None


def checked_options(options: Mapping[str, str] | None) -> dict[str, str]:
    """The options of a store, as a user gives them.

    Raises:
        ConfigError: They are no texts by name.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(
            f"storage_options is a {type(options).__name__}. Give a dict of texts by name, "
            '{"aws_region": "eu-west-1"}, say.'
        )
    for name, value in (options or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigError(
                f"storage_options[{name!r}] is a {type(value).__name__}; both must be texts: Lance "
                'takes "true" and "30s", not True and 30.'
            )
    return dict(options or {})
