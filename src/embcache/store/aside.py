"""Where damaged files of a table are put: out of use, and nothing that might be read is deleted.

A table is what its newest manifest says. Where that is damaged and an older one is not, moving the
newer manifests out of the way makes the older version the table again; data files stay where they
are. Where none can be used, the table's whole folder goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from embcache.errors import CacheWriteError
from embcache.store.watch import changed

_PREFIX = ".damaged-"  # hidden, and without a table's ending: no tool takes it for a table
_END_BYTES = 2**20


class Aside:
    """A hidden folder beside a table, made when the first file comes to it.

    Files lie in it as they lay in the table, so that copying them back undoes it.

    Args:
        table: The table's folder.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._folder = table.parent / f"{_PREFIX}{moment}"

    @property
    def folder(self) -> Path | None:
        """The folder; None as long as nothing came to it."""
        return self._folder if self._folder.exists() else None

    def move(self, file: Path) -> None:
        """Take a file away from the table.

        Raises:
            CacheWriteError: The file system refuses.
        """
        self._put(file, os.rename)
        changed(self._table)

    def keep(self, file: Path) -> None:
        """Keep a file that some version of the table names, and that a compaction may remove.

        By a hard link, as Lance itself needs for every commit: who reads the file goes on.

        Raises:
            CacheWriteError: The file system refuses.
        """
        self._put(file, os.link)

    def move_table(self) -> None:
        """Take the whole table away.

        Raises:
            CacheWriteError: The file system refuses.
        """
        self._put(self._table, os.rename, within="rest")  # manifests may have come before it

    def _put(self, path: Path, how: Callable[[Path, Path], None], within: str = "") -> None:
        target = self._folder / within / self._table.name / path.relative_to(self._table)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process's repair took it, or there is none
                how(path, target)
        except OSError as error:
            raise CacheWriteError(
                f"{path} cannot be set aside in {self._folder}: {error.strerror or error}. Is the "
                "cache's folder writable?"
            ) from error


def left(cache: Path) -> list[Path]:
    """Folders with what was set aside in a cache, oldest first."""
    return sorted(cache.glob(f"{_PREFIX}*"))


def has_left(table: Path) -> bool:
    """Whether files of a table were set aside: data files that only these name may lie in it."""
    return any((folder / table.name).exists() for folder in left(table.parent))


def read_ends(files: list[Path]) -> None:
    """Have the operating system read the first and the last bytes of files that look damaged.

    Args:
        files: Those that are not there are left out, and folders in their places.

    Raises:
        OSError: It refuses; then nothing says that they are damaged.
    """
    for path in files:
        try:
            with open(path, "rb") as file:
                file.read(_END_BYTES)
                file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
                file.read()
        except (FileNotFoundError, IsADirectoryError):
            continue
