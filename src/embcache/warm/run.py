"""Warming: a stream of texts in, committed rows out, in bounded memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from embcache.errors import InputError
from embcache.identity.keys import Keys, text_fault
from embcache.pipeline.chunks import WINDOW_BYTES, WINDOW_TEXTS
from embcache.pipeline.request import TextRequest
from embcache.pipeline.stats import EncodeStats, Watcher
from embcache.warm.sources import BadRow, Report, TextBatch
from embcache.warm.streams import join_small, read_ahead

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
    from embcache.pipeline.pipeline import Claim, Pipeline

logger = logging.getLogger(__name__)

_AHEAD = 2  # windows that are read and hashed while one is encoded


@dataclass
class WarmStats:
    """What was done so far.

    Attributes:
        texts: Texts that are dealt with, duplicates included: the sum of `hits` and `encoded`.
        hits: Texts that were cached before, or that an earlier text of the same run is equal to.
        encoded: Texts that were sent to the engine.
        upstream: How many of the hits, duplicates aside, came from an upstream.
        refused: Texts that cannot be encoded, duplicates included: reported, and left out.
        committed: How many of the encoded texts are on disk.
        tokens: Tokens of the encoded texts; 0 where the engine does not count them.
        seconds: Wall-clock seconds since the warmer was made.
        start_seconds: How many of them the engine took to start.
        starting: Whether the engine is starting at this moment.
        stopped: Whether the run was stopped before the end of the stream.
    """

    texts: int = 0
    hits: int = 0
    encoded: int = 0
    upstream: int = 0
    refused: int = 0
    committed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    starting: bool = False
    stopped: bool = False

    @property
    def working_seconds(self) -> float:
        """Seconds without the engine's start, for texts per second and the time left."""
        return self.seconds - self.start_seconds


@dataclass(frozen=True)
class Window:
    """Texts that are looked up together.

    Attributes:
        request: `n` texts and their prompt.
        keys: `(n, 2) uint64`, row i is the key of the i-th text.
        batch: The same texts, with their places in their source.
        bad: Texts between them that are left out, because they have no key.
    """

    request: TextRequest
    keys: Keys
    batch: TextBatch
    bad: Sequence[BadRow] = ()


def warn(row: BadRow) -> None:
    """Report a row that is left out as a warning in the log."""
    logger.warning("left out: %s", row)


class Warmer:
    """Fills an encoder's space from streams of texts.

    A text that cannot be encoded is reported and left out, and the others are encoded: one that the
    engine refuses (it has no tokens, say) or that has no UTF-8 form. The next run tries it again.

    Reading and hashing of the next windows, encoding, and writing overlap. Memory: the windows, and
    24 bytes for each key that the space holds, 33 while it is opened; glibc's malloc keeps more
    than that, unless the process limits it, see `warm.malloc`. Going on after an interruption costs
    reading and hashing only: what is committed is a hit.

    Args:
        encoder: The encoder whose space is filled; its cache_path must be one that can be written.
        advance: Called with the stats whenever they change, in the thread that runs.
        report: Called with each text that is left out, in the thread that runs; it may raise, to
            end the run.
        claim: Asked which of the missing keys are to be encoded here, see `Pipeline.fill`; None if
            all of them are.

    Attributes:
        stop: Set it, from any thread or a signal handler, to end after the chunk in flight; what is
            encoded by then is committed.
        stats: What was done so far, in all runs of this object.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        advance: Callable[[WarmStats], None] = lambda stats: None,
        report: Report = warn,
        claim: Claim | None = None,
    ) -> None:
        self._encoder = encoder
        self._report = report
        self._claim = claim
        self.stop = threading.Event()
        self.stats = WarmStats()
        self._watcher = _Counter(self.stats, advance)

    def run(self, batches: Iterable[TextBatch]) -> WarmStats:
        """Encode and commit whatever of a stream is missing.

        What is committed stays, whatever error ends a run.

        Args:
            batches: The stream; whatever reading it raises is raised here.

        Returns:
            What was done in all runs of this object.

        Raises:
            CacheError: The encoder has no cache that may be written, or it cannot be read or
                written.
            ConfigError: The encoder makes prompts of tasks, and a text is of none.
            EngineError: vLLM does not start, fails, or returns NaN or infinity.
        """
        pipeline = self._encoder.open_pipeline()
        pipeline.refresh()
        try:
            for window in self.windows(batches):
                self._fill(pipeline, window)
        finally:
            pipeline.flush()
        self.stats.stopped = self.stop.is_set()
        return replace(self.stats)

    def _fill(self, pipeline: Pipeline, window: Window) -> None:
        self.leave_out(window.bad)
        before = self.stats.refused
        done = pipeline.fill(
            window.request,
            window.keys,
            watcher=self._watcher,
            refuse=partial(self._refuse, window),
            stop=self.stop.is_set,
            claim=self._claim,
        )
        self._watcher.settle(done, self.stats.refused - before)
        # Else Arrow's pool keeps what it once had, and a long run grows slowly.
        pa.default_memory_pool().release_unused()

    def windows(self, batches: Iterable[TextBatch]) -> Iterator[Window]:
        """A stream's texts with their keys, read and hashed ahead by another thread.

        Args:
            batches: The stream; whatever reading it raises is raised here.

        Yields:
            Windows of at most `WINDOW_TEXTS` texts and `WINDOW_BYTES`, in the order of the stream.

        Raises:
            ConfigError: The encoder makes prompts of tasks, and a text is of none.
            InputError: A prompt has no UTF-8 form.
        """
        identity = self._encoder.open_pipeline().identity.to_bytes()
        yield from read_ahead(self._hashed(batches, identity), _AHEAD, self.stop)

    def leave_out(self, rows: Sequence[BadRow]) -> None:
        """Count and report texts that cannot be encoded.

        Args:
            rows: Their places, and why.
        """
        for row in rows:
            self.stats.refused += 1
            self._report(row)

    def _refuse(self, window: Window, refused: Mapping[int, str]) -> None:
        self.leave_out(
            [
                BadRow(window.batch.place(row), f"{window.request.show(row)} {reason}")
                for row, reason in refused.items()
            ]
        )

    def _hashed(self, batches: Iterable[TextBatch], identity: bytes) -> Iterator[Window]:
        for batch in join_small(batches, WINDOW_TEXTS, WINDOW_BYTES):
            for piece in batch.pieces(WINDOW_TEXTS, WINDOW_BYTES):
                try:
                    yield self._window(piece, identity)
                except InputError:
                    good, bad = _separated(piece)
                    yield replace(self._window(good, identity), bad=bad)

    def _window(self, batch: TextBatch, identity: bytes) -> Window:
        prompt = batch.prompt
        if prompt is None:
            prompt = self._encoder.prompt_for(batch.prompt_type)
        request = TextRequest(
            texts=batch.texts,
            prompt=prompt,
            prompt_type=batch.prompt_type,
            task=batch.source,
            show_progress=False,
        )
        return Window(request, request.keys(identity), batch)


def _separated(batch: TextBatch) -> tuple[TextBatch, list[BadRow]]:
    """The texts that have keys, and those that have none, which is rare."""
    faults = [text_fault(text) for text in batch.texts]
    kept = [i for i, fault in enumerate(faults) if fault is None]
    bad = [BadRow(batch.place(i), fault) for i, fault in enumerate(faults) if fault is not None]
    numbers = [batch.numbers[i] for i in kept] if len(batch.numbers) else ()
    return replace(batch, texts=[batch.texts[i] for i in kept], numbers=numbers), bad


class _Counter(Watcher):
    """Keeps the stats while a window is encoded.

    Args:
        stats: Changed in place.
        advance: Called with the stats whenever they change.
    """

    def __init__(self, stats: WarmStats, advance: Callable[[WarmStats], None]) -> None:
        self._stats = stats
        self._advance = advance
        self._began = time.perf_counter()

    def show(self) -> None:
        """Update the seconds, and hand the stats to whoever listens."""
        self._stats.seconds = time.perf_counter() - self._began
        self._advance(self._stats)

    def settle(self, done: EncodeStats, refused: int) -> None:
        """Count a window's hits, duplicates within it included; it is done, or was stopped.

        Args:
            done: What was done with the window.
            refused: How many of its texts were refused, duplicates included.
        """
        stopped = done.hits + done.encoded + done.refused < done.unique
        hits = done.hits if stopped else done.texts - done.encoded - refused
        self._stats.hits += hits
        self._stats.upstream += done.upstream
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
