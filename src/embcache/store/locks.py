"""Who is reading, writing and compacting a table: advisory locks that die with their process.

Every lock is a `flock`, which the kernel releases when its holder is killed. A version is pinned by
its manifest, so that it works where nothing may be written. A registry of readers in files of its
own would need clean-up itself, and Lance's tags must be written.

Where a file system has no locks, or not for every host (object stores, some cluster file systems),
nothing here is relied on for what is committed: commits are safe by Lance's own conflict detection,
versions are then kept for an hour instead, and a reader whose version went all the same reads again
in a newer one.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embcache.store.forks import ForkLock
from embcache.store.hosts import is_shared
from embcache.store.manifests import manifest

_COMPACTION = "_compaction.lock"
_TURNS = "_turns.lock"  # a file: NFS locks no folder exclusively
_threads = ForkLock()  # a lock on a folder is the whole process's


class Pin:
    """Keeps a version's files while it exists, and goes with the object, or the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether the version was removed all the same, with its table; False once released."""
        return self._close.alive and os.fstat(self._descriptor).st_nlink == 0

    def release(self) -> None:
        """Let go of the version before the object goes."""
        self._close()


def pin(table: Path | None, version: int) -> Pin | None:
    """Keep the files of a version from automatic clean-up; only within `in_turn`.

    Args:
        table: The table's folder; None where it has none, here and in all functions below.
        version: A version that was opened a moment ago.

    Returns:
        What holds it; None where that cannot be had: no locks, no descriptors, no such file.
    """
    if table is None:
        return None
    try:
        descriptor = os.open(manifest(table, version), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # reading works without a pin as well
        return None
    _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return Pin(descriptor)


def is_pinned(table: Path, version: int) -> bool:
    """Whether a process reads a version, or this one may not look, another user's file, say."""
    with _opened(manifest(table, version), os.O_RDWR) as descriptor:
        return descriptor is None or _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) is False


@contextmanager
def in_turn(table: Path | None, *, committing: bool = True) -> Iterator[None]:
    """While a version is opened and pinned, or committed: no clean-up comes between.

    Any number of threads and processes may be in it; a clean-up that has begun is waited for.

    Args:
        table: The table's folder.
        committing: Whether something may be written; else the lock's file is not made.
    """
    with _opened(_in(table, _TURNS), os.O_RDONLY | committing * os.O_CREAT) as descriptor:
        if descriptor is not None:
            _lock(descriptor, fcntl.LOCK_SH)
        yield


@contextmanager
def between_turns(table: Path | None) -> Iterator[bool]:
    """While files are removed: nobody is `in_turn`.

    Yields:
        Whether that is so; False also where it cannot be known, as other hosts may be at the table.
    """
    # Every commit makes the file; made here, it might be in the way of who deletes the folder.
    with _opened(_in(table, _TURNS), os.O_RDWR) as descriptor:
        had = descriptor is not None and _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield bool(had) and table is not None and not is_shared(table)


@contextmanager
def sole_compactor(table: Path | None, *, wait: bool = False) -> Iterator[bool]:
    """While fragments of a table are merged: by one thread of one process.

    Args:
        table: The table's folder.
        wait: Whether to wait for another one.

    Yields:
        False where another one is at it. Where there are no locks True: two of them waste work,
        and Lance refuses the second commit.
    """
    with _opened(_in(table, _COMPACTION), os.O_RDWR | os.O_CREAT) as descriptor:
        busy = descriptor is not None and (
            _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) is False
        )
        yield not busy


@contextmanager
def only_one(folder: Path | None) -> Iterator[bool]:
    """While damaged files are set aside: by one thread of one process, for a cache.

    The lock is on the folder itself, so that it leaves no file behind.

    Yields:
        Whether that is so; False where the file system has no locks, or not for folders (NFS).
    """
    with _threads, _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        yield descriptor is not None and bool(_lock(descriptor, fcntl.LOCK_EX))


def _in(table: Path | None, name: str) -> Path | None:
    return None if table is None else table / name


@contextmanager
def _opened(path: Path | None, flags: int) -> Iterator[int | None]:
    """A descriptor of a file or folder, and of the lock on it; None where it cannot be opened."""
    descriptor = None
    with suppress(OSError):  # gone, another user's, or out of descriptors: each caller says what
        if path is not None:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool | None:
    """Whether a lock was had; None where the file system has none."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP
        return None
    return True
