"""Compaction by itself: in threads of a writer, when it pays, and never in anybody's way."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta

import lance

from embcache.errors import CacheWriteError, EmbcacheError
from embcache.store.compaction import Fragment, clean_up, fragments_to_merge, merge_fragments
from embcache.store.lance_errors import is_conflict
from embcache.store.location import Location
from embcache.store.locks import sole_compactor
from embcache.store.manifests import FOLDER
from embcache.store.refusals import NO_SPACE, error_number

logger = logging.getLogger(__name__)

GRACE = timedelta(seconds=2)
"""How long a version stays that was the latest: for who opens it at this moment without a pin."""

# Who writes or reads next runs into the same, and says what it costs.
_SAID_BY_OTHERS = frozenset({*NO_SPACE, errno.EROFS, errno.EIO, errno.ENOENT})
_PAUSE_SECONDS = 60  # after a failure
_POLL_SECONDS = (
    0.1  # joining the main thread would be told of its end, but breaks Python 3.11's exit
)


class Compactor:
    """Compacts one table while its writer goes on.

    Small fragments are merged as soon as there are enough of them; old versions go some seconds
    later, and when the process ends. It takes two threads that live for as long as there is
    something to do. They are no daemons: those would be stopped inside native code, which aborts
    the process at times. An exit waits for the fragment that is being written, a second or so.

    Args:
        location: The table's place.
        merged: A method, called when fragments were merged: what read them may move on.
    """

    def __init__(self, location: Location, merged: Callable[[], object]) -> None:
        self._location = location
        # Weakly: in a cycle, a handle that nobody has any more would go on pinning its version.
        self._merged = weakref.WeakMethod(merged)
        self._merging: threading.Thread | None = None
        self._cleaning: threading.Thread | None = None
        self._pause_until = 0.0
        self._warned = False

    def after_commit(self, fragments: list[lance.LanceFragment]) -> None:
        """Begin what pays now; it returns at once.

        Args:
            fragments: The latest version's.
        """
        if time.monotonic() < self._pause_until or not _main_thread_runs():
            return
        if not _alive(self._merging) and fragments_to_merge([Fragment.of(f) for f in fragments]):
            self._merging = _start(self._merge)
        # In a store it takes a request for each version, so only what merging left is cleaned up.
        if self._location.folder is not None and not _alive(self._cleaning):
            self._cleaning = _start(self._clean)

    def join(self) -> None:
        """Wait for a merge that has begun: the table's folder may then be moved, or removed."""
        if self._merging is not None:
            self._merging.join()

    def _merge(self) -> None:
        try:
            with sole_compactor(self._location.folder) as alone:
                if alone and merge_fragments(self._location, _main_thread_runs):
                    self._move_on()
                    if self._location.folder is None:
                        clean_up(self._location, GRACE)
        except EmbcacheError as error:
            self._say(error)

    def _move_on(self) -> None:
        merged = self._merged()
        if merged is not None:
            merged()

    def _clean(self) -> None:
        until = time.monotonic() + GRACE.total_seconds()
        while _main_thread_runs() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        self.join()
        grace = GRACE if _main_thread_runs() else timedelta(0)
        try:
            clean_up(self._location, grace)
        except EmbcacheError as error:
            self._say(error)

    def _say(self, error: EmbcacheError) -> None:
        """The cache is as good as before, so one warning is enough; and none for a lost race."""
        folder = self._location.folder
        gone = folder is not None and not os.path.isdir(folder / FOLDER)
        if gone or is_conflict(error):
            logger.info("%s", error)
            return
        self._pause_until = time.monotonic() + _PAUSE_SECONDS
        told = not isinstance(error, CacheWriteError) or error_number(error) in _SAID_BY_OTHERS
        quiet = self._warned or told  # whoever opens a table that is damaged says so
        logger.log(
            logging.INFO if quiet else logging.WARNING,
            "%s This was compaction in the background; what is cached is not affected. "
            "compact_automatically=False turns it off.",
            error,
        )
        self._warned |= not quiet


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="embcache-compactor", daemon=False)
    thread.start()
    return thread


def _alive(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def _main_thread_runs() -> bool:
    """False once the process is about to exit, and waits for threads like these."""
    return threading.main_thread().is_alive()
