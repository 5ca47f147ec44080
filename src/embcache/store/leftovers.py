"""What killed processes left behind, in a cache's folder and in a table's.

All of it goes by age. What a living process works on is seconds old: only a process that was
suspended meanwhile would miss its file, and then it fails, or begins again, before it has committed
anything. What such a process would commit, data files, is not here: see `clean_up`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from embcache.store.hosts import now
from embcache.store.manifests import COMMIT_FOLDERS

CREATING = ".creating-"
"""Beginning of the names of folders in which tables are made, see `Location.made_elsewhere`."""

REMOVED = ".removed-"
"""Beginning of the names of folders in which tables are deleted, see `Location.remove`."""

TRIAL = ".embcache-trial-"
"""Beginning of the names of files by which a commit is tried out. They have none of Lance's
endings, so that Lance takes what a kill leaves for no data."""

AGE = timedelta(hours=1)
"""From which on something is taken for left behind."""


def remove_leftovers(folder: Path, older_than: timedelta = AGE) -> list[Path]:
    """Remove what killed creations, removals and trials left in a cache, or in a table.

    Args:
        folder: The cache's folder, or a table's.
        older_than: What was changed since then may be in use, and stays.

    Returns:
        What is gone now. What cannot be removed, another user's, is left where it is.
    """
    candidates = list(_candidates(folder))
    if not candidates:
        return []
    limit = now(folder) - older_than.total_seconds()
    found = [path for path in candidates if _changed(path) < limit]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    return [path for path in found if not os.path.lexists(path)]


def _candidates(folder: Path) -> Iterator[Path]:
    for pattern in (f"{CREATING}*", f"{REMOVED}*", f"{TRIAL}*"):
        for place in (folder, *(folder / name for name in COMMIT_FOLDERS)):
            yield from place.glob(pattern)


def _changed(path: Path) -> float:
    """When it was last changed; never, where another process has just removed it."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")
