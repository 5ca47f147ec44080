"""Warming: a stream of texts in, committed rows out, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from embcache.engine.base import CHARACTERS_A_TOKEN
from embcache.identity.keys import Keys
from embcache.pipeline.chunks import WINDOW_TEXTS
from embcache.pipeline.request import TextRequest
from embcache.pipeline.stats import EncodeStats, Watcher
from embcache.store import SpaceSnapshot
from embcache.store.index import KeyIndex, KeyParts, unique_keys
from embcache.warm.sources import TextBatch
from embcache.warm.streams import join_small, read_ahead

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

_AHEAD = 2  # windows that are read and hashed while one is encoded


@dataclass
class WarmStats:
    """What was done so far.

    Attributes:
        texts: Texts that are dealt with, duplicates included: the sum of `hits` and `encoded`.
        hits: Texts that were cached before, or that an earlier text of the same run is equal to.
        encoded: Texts that were sent to the engine.
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
        encoder: The encoder whose space is filled; its cache_path must be one that can be written.
        advance: Called with the stats whenever they change, in the thread that runs.

    Attributes:
        stop: Set it, from any thread or a signal handler, to end after the chunk in flight; what is
            encoded by then is committed.
        stats: What was done so far, in all runs of this object.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        advance: Callable[[WarmStats], None] = lambda stats: None,
    ) -> None:
        self._encoder = encoder
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
            InputError: A text has no UTF-8 form, or is refused by the tokenizer.
            EngineError: vLLM does not start, fails, or returns NaN or infinity.
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
        """A stream's texts with their keys, read and hashed ahead by another thread.

        Args:
            batches: The stream; whatever reading it raises is raised here.

        Yields:
            Windows of at most `WINDOW_TEXTS` texts, in the order of the stream.

        Raises:
            ConfigError: The encoder makes prompts of tasks, and a text is of none.
            InputError: A text has no UTF-8 form.
        """
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

    def settle(self, done: EncodeStats) -> None:
        """Count a window's hits, duplicates within it included; it is done, or was stopped."""
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


_ROW_OVERHEAD_BYTES = 60  # key, checksum, tokens, time, and Lance's own
_SAMPLE_ROWS = 2000


@dataclass(frozen=True)
class Plan:
    """What a warm run would do.

    Attributes:
        texts: Texts read, duplicates included.
        unique: Distinct pairs of prompt and text among them.
        cached: How many of these are cached.
        missing: How many of these would be encoded.
        tokens: Tokens of those that would be encoded, estimated.
        disk_bytes: Bytes that those would take on disk, estimated; None as long as the space has
            no rows that tell the vectors' size.
        prompts: Each prompt, and how many of the texts read it would be put in front of, the most
            frequent first.
    """

    texts: int
    unique: int
    cached: int
    missing: int
    tokens: int
    disk_bytes: int | None
    prompts: dict[str, int]


def plan(warmer: Warmer, encoder: VllmEncoderWrapper, batches: Iterable[TextBatch]) -> Plan:
    """Read and hash a stream, and look its texts up; nothing is encoded or written.

    It takes 24 bytes of memory for each distinct text, and for each key that the space holds.

    Args:
        warmer: Reads and hashes; one for the same encoder.
        encoder: The encoder whose space would be filled.
        batches: The stream; it is read to its end.

    Returns:
        What `warmer.run` would do with the same stream.

    Raises:
        CacheError: The cache cannot be read.
        ConfigError: The encoder makes prompts of tasks and a text is of none; a source lacks a
            column; or the encoder's dtype is "auto" and ambiguous.
        InputError: A source cannot be read, or a text has no UTF-8 form.
        EngineError: The encoder's dtype is "auto" and vLLM cannot say what that means.
    """
    pipeline = encoder.open_pipeline()
    snapshot = SpaceSnapshot() if pipeline.space is None else pipeline.space.refresh()
    seen = KeyParts()
    texts = unique = cached = characters = 0
    prompts: Counter[str] = Counter()
    for window in warmer.windows(batches):
        texts += len(window.keys)
        first, _ = unique_keys(window.keys)
        first = first[seen.find(window.keys[first]) < 0]
        unique += len(first)
        new = KeyIndex.build(window.keys[first], np.arange(len(first), dtype=np.uint64))
        seen = seen.extended(new)
        there = snapshot.find(window.keys[first]) >= 0
        cached += int(there.sum())
        request = window.request
        prompts[request.prompt] += len(window.keys)
        characters += sum(
            len(request.prompt) + len(request.texts[row]) for row in first[~there].tolist()
        )
    missing = unique - cached
    width = None if snapshot.dim is None else 4 * snapshot.dim
    disk = None if width is None else missing * (width + _ROW_OVERHEAD_BYTES) + characters
    tokens = round(characters / _characters_a_token(snapshot))
    return Plan(texts, unique, cached, missing, tokens, disk, dict(prompts.most_common()))


def _characters_a_token(snapshot: SpaceSnapshot) -> float:
    """Characters in a token, as in the first rows of the space if it has any, else a guess."""
    if not {"text", "prompt", "n_tokens"} <= set(snapshot.columns):
        return CHARACTERS_A_TOKEN
    characters = tokens = rows = 0
    for batch in snapshot.scan(["text", "prompt", "n_tokens"]):
        for row in batch.select(["text", "prompt", "n_tokens"]).to_pylist():
            if row["text"] is not None and row["n_tokens"]:
                characters += len(row["text"]) + len(row["prompt"] or "")
                tokens += row["n_tokens"]
        rows += batch.num_rows
        if rows >= _SAMPLE_ROWS:
            break
    return characters / tokens if characters and tokens else CHARACTERS_A_TOKEN
