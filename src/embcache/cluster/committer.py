"""The one who commits what all replicas of a job have written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import lance

from embcache.cluster.reports import Written
from embcache.errors import CacheWriteError
from embcache.store import Location, Space
from embcache.store.background import GRACE
from embcache.store.compaction import Fragment, clean_up, fragments_to_merge, merge_fragments
from embcache.store.lance_errors import is_conflict
from embcache.store.locks import sole_compactor

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 2.0
COMMIT_SECONDS_IN_A_STORE = 5.0
"""Time between two commits, at least: short enough that a kill of the driver loses little."""

_SHARE = 0.05  # of the time, at most, for commits: a manifest lists all files, so they get slow
_MERGE_SECONDS = 30.0

LATE_SECONDS = 1800.0
"""How old a file may be that is committed. A compaction of another process takes files that nobody
has committed for an hour for those of a process that is dead, and removes them."""


class Committer:
    """Commits files that replicas have written, and has the table compacted when it pays.

    Vectors are not read here: merging is a task of Ray, on whatever node has room.

    Args:
        space: The space that the files are of.
        compact: Whether small files are merged.
    """

    def __init__(self, space: Space, *, compact: bool) -> None:
        self._space = space
        self._compact = compact
        self._waiting: list[tuple[float, Written]] = []
        remote = space.location.folder is None
        self._least = self._every = COMMIT_SECONDS_IN_A_STORE if remote else COMMIT_SECONDS
        self._last = time.monotonic()
        self._merging: Any = None
        self._warned = False
        self.committed = 0

    def take(self, written: Iterable[Written]) -> None:
        """Take files that are to be committed."""
        self._waiting += [(time.monotonic(), one) for one in written]

    def commit(self, *, now: bool = False) -> None:
        """Commit what is waiting, if it is time to.

        Args:
            now: Whether to commit in any case.

        Raises:
            CacheWriteError: The space cannot be written; or files have waited for so long that
                they may be gone.
        """
        if not self._waiting or not (now or time.monotonic() - self._last >= self._every):
            return
        oldest = min(since for since, _ in self._waiting)
        if time.monotonic() - oldest > LATE_SECONDS:
            raise CacheWriteError(
                f"{len(self._waiting)} files of {self._space.location} could not be committed for "
                f"{LATE_SECONDS / 60:g} minutes, and a compaction may have removed them since. The "
                "same command encodes again what they held."
            )
        began = time.monotonic()
        fragments = self._space.add_staged([one.file for _, one in self._waiting])
        self.committed += sum(len(one.keys) for _, one in self._waiting)
        self._waiting.clear()
        self._last = time.monotonic()
        self._every = max(self._least, (self._last - began) / _SHARE)
        if self._compact:
            self._merge(fragments)

    def close(self) -> None:
        """Give a merge that has begun a while; one that is cut off leaves the table as it was."""
        import ray

        if self._merging is not None and ray.wait([self._merging], timeout=_MERGE_SECONDS)[0]:
            self._tell_of_merge()

    def _merge(self, fragments: list[lance.LanceFragment]) -> None:
        import ray

        if self._merging is not None:
            if not ray.wait([self._merging], timeout=0)[0]:
                return
            self._tell_of_merge()
        if fragments_to_merge([Fragment.of(one) for one in fragments]) is None:
            return
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")(_merge)
        location = self._space.location
        self._merging = task.remote(location.uri, dict(location.storage_options))

    def _tell_of_merge(self) -> None:
        """Warn where a merge failed, once it is over: its own process's log nobody sees."""
        import ray

        try:
            failure = ray.get(self._merging)
        except ray.exceptions.RayError as error:  # it was killed, or its node
            failure = f"A process that merged files of {self._space.location} is gone: {error}"
        self._merging = None
        if failure is not None:
            log = logger.info if self._warned else logger.warning
            log("%s This was compaction; what is cached is not affected.", failure)
            self._warned = True


def _merge(uri: str, options: dict[str, str]) -> str | None:
    """Merge small fragments of a table; what fails is tried again after the next commits.

    Returns:
        What failed; None where nothing did, or another writer was first.
    """
    location = Location.of(uri, options)
    try:
        with sole_compactor(location.folder) as alone:
            if alone and merge_fragments(location, lambda: True):
                clean_up(location, GRACE)
    except Exception as error:
        said = location.without_secrets(str(error))
        if not is_conflict(error):
            return said
        logger.info("%s", said)
    return None
