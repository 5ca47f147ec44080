"""One upstream cache while an encoder lives: asked patiently, and left alone once it fails.

Whatever goes wrong there costs no run: it is said once, and the run goes on without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from embcache.errors import CacheError, CacheWriteError, EmbcacheError
from embcache.identity.identity import Identity
from embcache.pipeline.patience import Beat, HangingError, patiently
from embcache.store import Database, Location
from embcache.store.lance_errors import is_of_lance

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long an upstream may take to get on a little before it is given up."""

PAUSE_SECONDS = 600.0
"""How long an upstream that failed is left alone. One that hung is, for as long as its encoder
lives: each further try would cost the patience again."""


class UpstreamCache:
    """A cache in which is looked up what one's own has not; see `ask`. Threads may share it.

    Args:
        location: Where it is.
        write: Whether what is encoded here is written there.

    Attributes:
        location: As given.
        write: Whether it is written; False from the first write on that is refused.
    """

    def __init__(self, location: Location, *, write: bool = False) -> None:
        self.location = location
        self.write = write
        self._until = 0.0
        self._told = False

    def __repr__(self) -> str:
        return f"<UpstreamCache {self.location}>"

    @property
    def usable(self) -> bool:
        """Whether it may be asked now."""
        return time.monotonic() >= self._until

    def ask(self, work: Callable[[Beat], T]) -> T | None:
        """Do something that touches the upstream, in another thread.

        Args:
            work: What is done; it calls the `Beat` that it gets whenever it has got on.

        Returns:
            What the work returns; None where it fails or hangs, or may not be done now, because
            it failed before. A warning says why.
        """
        if not self.usable:
            return None
        try:
            found = patiently(work, PATIENCE_SECONDS)
        except HangingError as error:
            self._leave_alone(str(error), float("inf"))
        except BaseException as error:
            if isinstance(error, CacheWriteError) and self.write:
                self._refuse_writing(error)
                return None
            if not is_of_lance(error):  # Ctrl-C, say
                raise
            kind = "" if isinstance(error, EmbcacheError) else f"{type(error).__name__}: "
            self._leave_alone(f"{kind}{error}", PAUSE_SECONDS)
        else:
            self._told = False
            return found
        return None

    def check_exists(self) -> None:
        """Refuse a cache that is not there; within `ask`.

        Raises:
            CacheError: There is none, and it is not one that is made by writing.
        """
        if not self.write and not self.location.exists():
            raise CacheError("it does not exist, or cannot be seen from here.")

    def open(self) -> Database:
        """The cache; within `ask`.

        Raises:
            CacheError: There is no such cache, or it is no directory, or one of caches.
        """
        database = Database(self.location, writable=False)  # says within seconds what is wrong
        self.check_exists()
        self._check_level()
        return database

    def cached_dtypes(self, identity: Identity) -> list[str]:
        """As `Database.cached_dtypes`; none where the upstream cannot say."""
        return self.ask(lambda _: self.open().cached_dtypes(identity)) or []

    def _check_level(self) -> None:
        """Refuse the folder above caches, which is taken for an empty one without a word."""
        if self.write or self.location.folder is None or self.location.named_as_tables():
            return
        if caches := self.location.caches():
            raise CacheError(f"there is no space in it. It holds caches: {', '.join(caches)}.")

    def _refuse_writing(self, error: CacheWriteError) -> None:
        """Write nothing there any more; reading goes on."""
        self.write = False
        logger.warning(
            "The upstream cache %s cannot be written, and the run goes on without: what is "
            "encoded from now on is not kept there. %s",
            self.location,
            error,
        )

    def _leave_alone(self, reason: str, seconds: float) -> None:
        """Ask nothing of it for a while; a warning says so, once until it works again."""
        self._until = time.monotonic() + seconds
        for_long = (
            f"It is tried again in {seconds / 60:.0f} minutes."
            if seconds < float("inf")
            else "This encoder does not try it again."
        )
        logger.log(
            logging.INFO if self._told else logging.WARNING,
            "The upstream cache %s is not used, and the run goes on without: %s %s",
            self.location,
            reason.rstrip(".") + ".",
            for_long,
        )
        self._told = True
