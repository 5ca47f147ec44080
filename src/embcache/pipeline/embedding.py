"""Chunks through an engine, in pieces where it fails on a whole one.

A chunk that fails is tried again: in halves where memory ran out, otherwise in eighths, to find the
text at which the engine fails. An engine that fails on whatever it gets ends the run after a few
calls. What was computed by then has been handed on, and so is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embcache.engine.base import Embedded, Engine
from embcache.engine.failures import died, let_go, out_of_memory, said
from embcache.errors import EmbcacheError, EngineError
from embcache.pipeline.chunks import Chunk, Refuse
from embcache.pipeline.messages import (
    given_up_error,
    memory_error,
    non_finite_error,
    non_finite_reason,
    wrong_shape_error,
)
from embcache.pipeline.request import Request
from embcache.store import panics
from embcache.store.index import Positions

logger = logging.getLogger(__name__)

# Of one chunk. A text that fails by itself costs four of a thousand texts; each call after which
# the engine has to be started again costs up to minutes.
_MOST_FAILURES = 100
_MOST_RESTARTS = 12
_HALVES, _EIGHTHS = 2, 8
_MOST_NON_FINITE = 0.5  # from this share on it is the model that fails, not a text


@dataclass(frozen=True)
class Part:
    """Rows of a request with their vectors, to be committed together.

    Attributes:
        rows: `(n,) int64`, which items of the request.
        embedded: Their `n` vectors, all finite.
    """

    rows: Positions
    embedded: Embedded


@dataclass
class Limit:
    """What an engine can do at once, as far as it has failed at more; of one engine, for its life.

    Attributes:
        tokens: Texts times tokens of the longest of them, in one call; None as long as memory has
            sufficed.
        deaths: How often the engine died without saying why.
    """

    tokens: int | None = None
    deaths: int = 0

    def lower(self, pieces: Sequence[Chunk]) -> None:
        """Allow no call that is larger than these."""
        most = max(len(piece) * int(piece.lengths.max(initial=1)) for piece in pieces)
        self.tokens = most if self.tokens is None else min(self.tokens, most)

    def pieces(self, chunk: Chunk) -> list[Chunk]:
        """A chunk in pieces that are small enough: itself, as long as nothing has failed."""
        if self.tokens is None:
            return [chunk]
        found, at = [], 0
        while at < len(chunk):
            longest = np.maximum.accumulate(chunk.lengths[at : at + max(self.tokens, 1)])
            padded = longest * np.arange(1, len(longest) + 1)
            count = max(1, int(np.searchsorted(padded, self.tokens, side="right")))
            found.append(chunk.cut(slice(at, at + count)))
            at += count
        return found


@dataclass
class _Tries:
    """What went wrong with one chunk.

    Attributes:
        chunk: The chunk.
        failures: How many calls failed.
        restarts: After how many of them something had to be started again.
        ended: Whether the last one ended the engine.
    """

    chunk: Chunk
    failures: int = 0
    restarts: int = 0
    ended: bool = False


@dataclass
class Embedder:
    """Has an engine embed the chunks of one request.

    Attributes:
        engine: The engine, started.
        request: The items.
        limit: What the engine can do at once; kept from one request to the next.
        restart: Starts an engine that a failure has ended, and sees that it is the same one.
        refuse: Is told of texts that make the engine fail, or of which it makes no finite vector.
        stop: Asked after a failure: once it returns True, nothing is tried again.
        spare: Other prompts, by which to see whether the engine works at all; it may raise.
    """

    engine: Engine
    request: Request
    limit: Limit
    restart: Callable[[], None]
    refuse: Refuse
    stop: Callable[[], bool] = lambda: False
    spare: Callable[[], Sequence[Any]] = lambda: ()
    _proof: list[Any] = field(default_factory=list)  # the last prompt that it has embedded

    def parts(self, chunk: Chunk) -> Iterator[Part]:
        """Embed a chunk.

        Args:
            chunk: Some items of the request.

        Yields:
            Parts of the chunk, one as a rule. Together they have each of its items that is not
            refused; fewer where `stop` ended it, or an error.

        Raises:
            EngineError: Memory does not suffice for a single text, or the engine fails time and
                again, or cannot be restarted.
            WrongOutputError: The engine does not return one vector for each text.
            NonFiniteError: At least half of the vectors hold NaN or infinity.
            Exception: Whatever else the engine raises, if it fails on other texts too.
        """
        tries = _Tries(chunk)
        done: list[Part] = []
        waiting = [chunk]
        while waiting:
            piece, *rest = self.limit.pieces(waiting.pop())  # it may have been lowered since
            waiting += rest[::-1]
            failure: BaseException | None = None
            try:
                part, refused = self._embed(piece)
                done.append(part)
            except BaseException as error:  # Ctrl-C too: it is raised below
                failure, refused = error, {}
            if failure is None and not refused:
                continue
            yield from _joined(done)  # before anything may be raised: what is computed is kept
            done = []
            if refused:
                self.refuse(refused)
            # Beyond the `except`, which would hold on to the error, and the error to memory.
            if isinstance(failure, Exception):
                if self.stop():
                    logger.warning("stopped; the chunk in flight has failed: %s", said(failure))
                    return
                waiting += self._after(failure, piece, tries)[::-1]
            elif failure is not None:
                raise failure
        yield from _joined(done)

    def _embed(self, piece: Chunk) -> tuple[Part, dict[int, str]]:
        """Vectors of a piece's texts, and which texts have none that is finite, and why."""
        with panics.on_screen():  # a pool of processes starts with its first chunk
            embedded = self.engine.embed(piece.prompts)
        vectors = np.ascontiguousarray(embedded.vectors, np.float32)
        count, shape, tokens = len(piece), vectors.shape, embedded.n_tokens
        if len(shape) != 2 or shape[0] != count or (tokens is not None and len(tokens) != count):
            counted = None if tokens is None else len(tokens)
            raise wrong_shape_error(self.request, self.engine.version, shape, counted, count)
        self._proof = piece.prompts[-1:]  # the shortest, as a rule
        finite = np.isfinite(vectors).all(axis=1)
        if finite.all():
            return Part(piece.rows, Embedded(vectors, tokens)), {}
        bad = piece.rows[~finite]
        if len(bad) >= _MOST_NON_FINITE * count:
            raise non_finite_error(self.request, bad, count, self.engine.dtype)
        kept = None if tokens is None else tokens[finite]
        part = Part(piece.rows[finite], Embedded(vectors[finite], kept))
        return part, dict.fromkeys(bad.tolist(), non_finite_reason(self.engine.dtype))

    def _after(self, failure: Exception, piece: Chunk, tries: _Tries) -> list[Chunk]:
        """What to try next of a piece that failed: smaller pieces, or nothing if it is refused."""
        if isinstance(failure, EmbcacheError) and type(failure) is not EngineError:
            raise failure
        let_go(failure)
        tries.failures += 1
        memory = out_of_memory(failure)
        if memory and len(piece) == 1:
            raise memory_error(self.request, tries.chunk, piece, self.engine, failure) from failure
        self._start_again(failure, tries)
        if not memory and (tries.failures == 1 or len(piece) == 1):
            self._see_that_it_works(failure, piece, tries)
        if len(piece) == 1:
            self._leave_out(piece, failure)
            return []
        pieces = self._split(piece, _HALVES if memory else _EIGHTHS)
        self.limit.deaths += died(failure)
        if memory or (died(failure) and self.limit.deaths > 1):
            self.limit.lower(pieces)
        logger.warning(
            "The engine failed on %d %ss of up to %d tokens (%s); trying again, %d at a time.",
            len(piece),
            self.request.unit,
            piece.lengths.max(),
            said(failure),
            len(pieces[0]),
        )
        return pieces

    def _split(self, piece: Chunk, ways: int) -> list[Chunk]:
        # More than a batch at once would be the same to the engine's memory as before.
        size = max(1, min(len(piece) // ways, self.engine.batch_size // 2))
        return [piece.cut(slice(at, at + size)) for at in range(0, len(piece), size)]

    def _start_again(self, failure: Exception, tries: _Tries) -> None:
        """Start the engine, if the failure has ended it; raises if it was tried often enough."""
        tries.ended = not self.engine.started
        tries.restarts += tries.ended or died(failure)  # a pool's processes start by themselves
        if tries.failures > _MOST_FAILURES or tries.restarts > _MOST_RESTARTS:
            raise given_up_error(
                self.request, tries.chunk, self.engine, failure, tries.failures, tries.restarts
            ) from failure
        if not tries.ended:
            return
        try:
            self.restart()
        except EmbcacheError as error:
            if type(error) is not EngineError:
                raise
            raise EngineError(f"{failure} Started again after that: {error}") from failure

    def _see_that_it_works(self, failure: Exception, piece: Chunk, tries: _Tries) -> None:
        """Raise what was raised if the engine fails on other texts, too: no text is at fault."""
        for prompt in self._others(piece, ours=tries.ended or not died(failure)):
            if not self.engine.started:  # the last one of them has ended it
                self._start_again(failure, tries)
            try:
                self.engine.embed([prompt])
            except Exception as error:
                logger.debug("the engine fails on another text, too: %s", said(error))
                tries.failures += 1
                let_go(error)
            else:
                self._proof = [prompt]
                return
        raise failure

    def _others(self, piece: Chunk, *, ours: bool) -> Iterator[Any]:
        """Prompts that should work: one that did, or two of the piece, or else embcache's own.

        Args:
            piece: What failed.
            ours: Whether embcache's own say anything: not of a pool of processes that has died,
                which they do not go through.
        """
        if self._proof:
            yield self._proof[0]
        elif len(piece) > 1:
            yield piece.prompts[-1]
            yield piece.prompts[(len(piece) - 1) // 2]
        elif ours:
            try:
                yield from self.spare()
            except Exception as error:  # of an engine that fails at whatever it gets
                logger.debug("there are no other prompts to try: %s", said(error))

    def _leave_out(self, piece: Chunk, failure: Exception) -> None:
        reason = f"makes the engine fail, which others do not ({said(failure)}). Drop or change it"
        self.refuse({int(piece.rows[0]): reason})


def _joined(parts: Sequence[Part]) -> Iterator[Part]:
    """One part of several, for one commit instead of many; as they are if their widths differ."""
    if len(parts) < 2 or len({part.embedded.vectors.shape[1] for part in parts}) > 1:
        yield from (part for part in parts if len(part.rows))
        return
    counts = [part.embedded.n_tokens for part in parts]
    known = [count for count in counts if count is not None]
    yield Part(
        np.concatenate([part.rows for part in parts]),
        Embedded(
            np.concatenate([part.embedded.vectors for part in parts]),
            np.concatenate(known) if len(known) == len(parts) else None,
        ),
    )
