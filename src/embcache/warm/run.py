"""Warming: a stream of texts in, committed rows out, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from embcache.identity.keys import Keys
from embcache.pipeline.chunks import WINDOW_TEXTS
from embcache.pipeline.request import TextRequest
from embcache.pipeline.stats import EncodeStats, Watcher
from embcache.warm.sources import TextBatch
from embcache.warm.streams import join_small, read_ahead

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

_AHEAD = 2  # windows that are read and hashed while one is encoded


@dataclass
class WarmStats:
    """What was done so far.

    Attributes:
        texts: Texts that are cached now; hits and encoded add up to them.
        hits: Those that were cached before, or by an earlier text of the same run.
        encoded: Those sent to the engine.
        committed: Of those, the ones that are on disk.
        tokens: Tokens of those that were encoded.
        seconds: Wall-clock seconds.
        start_seconds: Those of them that the engine took to start.
        starting: Whether it is starting at this moment.
        stopped: Whether it was stopped before the end.
    """

    texts: int = 0
    hits: int = 0
    encoded: int = 0
    committed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    starting: bool = False
    stopped: bool = False

    @property
    def working_seconds(self) -> float:
        """Seconds without the engine's start: what rates are about."""
        return self.seconds - self.start_seconds


@dataclass(frozen=True)
class Window:
    """Texts that are looked up together.

    Attributes:
        request: The texts and their prompt.
        keys: Their keys.
    """

    request: TextRequest
    keys: Keys


class Warmer:
    """Fills an encoder's space from streams of texts.

    Reading and hashing of the next windows, encoding, and writing overlap. Memory: the windows, and
    24 bytes for each key that the space holds, 33 while it is opened; glibc's malloc keeps more
    than that, unless the process limits it, see `warm.malloc`. Going on after an interruption costs
    reading and hashing only: what is committed is a hit.

    Args:
        encoder: With a cache_path that can be written.
        advance: Called with the stats whenever they change.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        advance: Callable[[WarmStats], None] = lambda stats: None,
    ) -> None:
        self._encoder = encoder
        self.stop = threading.Event()
        """Set it to end after the chunk in flight; what is encoded by then is committed."""
        self.stats = WarmStats()
        self._watcher = _Counter(self.stats, advance)

    def run(self, batches: Iterable[TextBatch]) -> WarmStats:
        """Encode and commit whatever of a stream is missing.

        Returns:
            What was done in all runs of this object.

        Raises:
            CacheError: The cache cannot be read or written.
            InputError: A text cannot be encoded.
            EngineError: vLLM does not start or fails; what was committed stays.
        """
        pipeline = self._encoder.open_pipeline()
        pipeline.refresh()
        for window in self.windows(batches):
            done = pipeline.fill(
                window.request, window.keys, watcher=self._watcher, stop=self.stop.is_set
            )
            self._watcher.settle(done)
            # Else Arrow's pool keeps what it once had, and a long run grows slowly.
            pa.default_memory_pool().release_unused()
        self.stats.stopped = self.stop.is_set()
        return replace(self.stats)

    def windows(self, batches: Iterable[TextBatch]) -> Iterator[Window]:
        """A stream's texts with their keys, read and hashed ahead by another thread."""
        identity = self._encoder.open_pipeline().identity.to_bytes()
        yield from read_ahead(self._hashed(batches, identity), _AHEAD, self.stop)

    def _hashed(self, batches: Iterable[TextBatch], identity: bytes) -> Iterator[Window]:
        for batch in join_small(batches, WINDOW_TEXTS):
            prompt = batch.prompt
            if prompt is None:
                prompt = self._encoder.prompt_for(batch.prompt_type)
            for at in range(0, len(batch.texts), WINDOW_TEXTS):
                request = TextRequest(
                    texts=batch.texts[at : at + WINDOW_TEXTS],
                    prompt=prompt,
                    prompt_type=batch.prompt_type,
                    task=batch.source,
                    show_progress=False,
                )
                yield Window(request, request.keys(identity))


class _Counter(Watcher):
    """Keeps the stats while a window is encoded.

    Args:
        stats: Kept up to date.
        advance: Called with them whenever they change.
    """

    def __init__(self, stats: WarmStats, advance: Callable[[WarmStats], None]) -> None:
        self._stats = stats
        self._advance = advance
        self._began = time.perf_counter()

    def show(self) -> None:
        """Tell how long it has taken, and whoever listens."""
        self._stats.seconds = time.perf_counter() - self._began
        self._advance(self._stats)

    def settle(self, done: EncodeStats) -> None:
        """A window is done, or was stopped: count what was encoded before, or twice in it."""
        stopped = done.hits + done.encoded < done.unique
        hits = done.hits if stopped else done.texts - done.encoded
        self._stats.hits += hits
        self._stats.texts += hits
        self.show()

    def starting(self) -> None:
        self._stats.starting = True
        self.show()

    def started(self) -> None:
        before = self._stats.seconds
        self._stats.starting = False
        self.show()
        self._stats.start_seconds += self._stats.seconds - before

    def encoded(self, items: int, tokens: int) -> None:
        self._stats.texts += items
        self._stats.encoded += items
        self._stats.tokens += tokens
        self.show()

    def committed(self, items: int) -> None:
        self._stats.committed += items
        self.show()
