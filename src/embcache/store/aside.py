"""Damaged files of a table, set aside: renamed, so that nothing uses them, and never deleted.

A table is what its newest manifest says. Where that is damaged and an older one is not, moving the
newer manifests out of the way makes the older version the table again; data files stay where they
are. Where none can be used, the table's whole folder gets another name.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

MARK = ".damaged-"
"""In the names of what was set aside, after the name that it had, before the time."""

_MANIFESTS = "_versions"
_LAST = 2**64 - 1  # manifests are called by their distance from it, so that the newest sorts first
_DIGITS = 20  # of such a name; older tables count up, without leading zeros
_END_BYTES = 2**20
_threads = threading.Lock()  # a lock on a file is the whole process's


def manifests(table: Path) -> dict[int, Path]:
    """Manifests of a table by version, newest first; none where there is no such folder."""
    found = {}
    for path in (table / _MANIFESTS).glob("*.manifest"):
        if path.stem.isdecimal():
            number = int(path.stem)
            found[_LAST - number if len(path.stem) == _DIGITS else number] = path
    return dict(sorted(found.items(), reverse=True))


def set_aside(path: Path) -> Path:
    """Rename a file or folder, which keeps its place.

    Returns:
        What it is called now.

    Raises:
        OSError: The file system refuses.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    target = path.with_name(f"{path.name}{MARK}{stamp}")
    path.rename(target)
    return target


def left(cache: Path) -> list[Path]:
    """What was set aside in a cache and is still there, by name."""
    found = [*cache.glob(f"*{MARK}*"), *cache.glob(f"*/{_MANIFESTS}/*{MARK}*")]
    return sorted(found)


def read_ends(files: Sequence[Path]) -> None:
    """Read the first and the last bytes of files; those that are not there are left out.

    Raises:
        OSError: One cannot be read.
    """
    for path in files:
        try:
            with open(path, "rb") as file:
                file.read(_END_BYTES)
                file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
                file.read()
        except FileNotFoundError:
            continue


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one, of all processes and threads, within this block for a folder.

    The lock is on the folder itself: it leaves no file behind, and ends with the process.

    Raises:
        OSError: The file system has no locks, or not for folders (NFS).
    """
    with _threads:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
