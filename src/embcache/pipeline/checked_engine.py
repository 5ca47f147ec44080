"""An engine that is compared with the one that filled the space, before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from embcache.engine.base import Engine
from embcache.pipeline.canaries import Canaries
from embcache.pipeline.job import Job
from embcache.pipeline.request import Request
from embcache.pipeline.stats import Watcher
from embcache.store import Space, panics
from embcache.store.forks import ForkLock

logger = logging.getLogger(__name__)


class CheckedEngine:
    """Starts an engine, and sees that it is the one that filled the space.

    Args:
        engine: Computes values.
        lock: Held while the engine works.
        space: The space that is written; None where none is.
        canaries: The space's; None to compare none.
        check: Called when the engine has started; raises where it is not the one that is meant.
        before_hits: Whether canaries are compared before the first hit is handed out, too.
    """

    def __init__(
        self,
        engine: Engine,
        lock: ForkLock,
        space: Space | None,
        canaries: Canaries | None,
        *,
        check: Callable[[], None],
        before_hits: bool,
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._space = space
        self._canaries = canaries
        self._check = check
        self._before_hits = before_hits
        self._warned = False

    def start(self, job: Job, watcher: Watcher) -> None:
        """Start the engine if need be, and compare it; the caller holds its lock.

        Args:
            job: The call that needs it.
            watcher: Is told of the start.

        Raises:
            ChangedModelError: The engine makes other vectors of the canaries.
            EngineError: It does not start, or fails.
        """
        if not self._engine.started:
            watcher.starting()
            with panics.on_screen():  # it starts processes
                self._engine.start()
            watcher.started()
            if self._canaries is not None:
                self._canaries.forget()
        self._check()
        self._warn_of_another_version(job.snapshot.engine_version)
        if self._canaries is not None:
            self._canaries.check(job.request)

    def check_hits(self, request: Request) -> None:
        """Compare an engine that is at hand with the space's canaries, once.

        Raises:
            ChangedModelError: It makes other vectors of them.
        """
        if self._canaries is None or not self._before_hits:
            return
        if self._canaries.compared(request):
            return  # without the lock: no hit waits for what another thread encodes
        with self._lock:
            self._canaries.check(request)

    def kept(self, job: Job) -> None:
        """Add canaries that are new, now that rows were kept."""
        if self._canaries is not None and job.store.writes:
            self._canaries.commit()

    def ended(self, job: Job) -> None:
        """Say at a call's end what was not said, where rows are written and canaries are not."""
        if self._canaries is not None and job.store.writes:
            self._canaries.tell_of_refusal()

    def spare_prompts(self, request: Request) -> list[Any]:
        """A prompt of embcache's own, where it may send such."""
        if self._canaries is None:
            return []
        canaries = request.canaries(with_prompt=False)
        return self._engine.prepare(canaries.inputs([0])).prompts

    def _warn_of_another_version(self, begun_with: str | None) -> None:
        """Warn once where the space was begun with another version of the engine.

        Versions are not part of the identity, so that an upgrade does not empty the cache.
        """
        if self._warned or self._space is None:
            return
        self._warned = True
        if begun_with not in (None, self._engine.version):
            logger.warning(
                "%s was begun with %s; new rows come from %s. They agree closely, not bit for "
                "bit. Use another cache_path where that matters.",
                self._space.location,
                begun_with,
                self._engine.version,
            )
