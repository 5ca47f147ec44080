"""Where a repair puts what it takes out of a table: nothing that might be read is deleted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from embcache.errors import CacheError
from embcache.store.location import Location
from embcache.store.watch import changed

_PREFIX = ".damaged-"  # hidden, and without a table's ending: no tool takes it for a table


class Aside:
    """A hidden folder beside a table, made when the first file comes to it.

    Files lie in it as they lay in the table, so that copying them back undoes it.

    Args:
        table: The table's place.
    """

    def __init__(self, table: Location) -> None:
        self._table = Path(table.uri)
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._folder = self._table.parent / f"{_PREFIX}{moment}"

    @property
    def location(self) -> Location | None:
        """The folder; None as long as nothing came to it."""
        return Location(str(self._folder)) if self._folder.exists() else None

    def move(self, file: Path) -> None:
        """Take a file away from the table.

        Raises:
            CacheError: The file system refuses.
        """
        self._put(file, os.rename)
        changed(self._table)

    def keep(self, file: Path) -> None:
        """Keep a file that some version of the table names, and that a compaction may remove.

        By a hard link, as Lance itself needs for every commit: who reads the file goes on.

        Raises:
            CacheError: The file system refuses.
        """
        self._put(file, os.link)

    def move_table(self) -> None:
        """Take the whole table away.

        Raises:
            CacheError: The file system refuses.
        """
        self._put(self._table, os.rename, within="rest")  # manifests may have come before it

    def _put(self, path: Path, how: Callable[[Path, Path], None], within: str = "") -> None:
        target = self._folder / within / self._table.name / path.relative_to(self._table)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process's repair took it, or there is none
                how(path, target)
        except OSError as error:
            raise CacheError(
                f"{path} cannot be set aside in {self._folder}: {error.strerror or error}. Is the "
                "cache's folder writable?"
            ) from error
