"""Missing items, cut into chunks: each is one commit and, if all is well, one engine call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embcache.engine.base import Engine, Prepared
from embcache.engine.runs import runs
from embcache.errors import EngineError
from embcache.pipeline.request import Request
from embcache.store.index import Positions

WINDOW_TEXTS = 16_384
"""Texts that are tokenized and sorted at a time, at most."""

WINDOW_BYTES = 2**23
"""Bytes of those texts in memory, at most. A warm holds five windows (one is worked on, two wait,
one is made, one is read), and besides each text with its prompt, token ids, and the copies that a
commit makes: 8 MB of texts come to less than 256 MB of all. 16,384 passages fit."""

CHUNK_BYTES = 2**25
"""Bytes of a chunk's vectors, at most, as soon as their width is known: some are on their way to
the disk while the next ones are made, and copied there more than once."""

CHUNK_SECONDS = (5.0, 20.0)
"""Seconds that a chunk should take, at least and at most: long beside a commit, and short enough
that a kill loses little."""

CHUNK_SECONDS_IN_A_STORE = (15.0, 60.0)
"""The same where a commit is some requests, that may have to wait for those of others."""

Refuse = Callable[[Mapping[int, str]], None]
"""Is told which items of a request the engine refuses, and why; it may raise."""

_TOKENS_A_SEQUENCE = 256
# A text costs time beside that for its tokens, which matters for short ones: about as much as so
# many tokens.
_TEXT_OVERHEAD_TOKENS = 16


@dataclass(frozen=True)
class Chunk:
    """Rows of a request that are encoded and committed together.

    Attributes:
        rows: `(n,) int64`, which items of the request.
        prompts: `n` inputs for `Engine.embed`, `prompts[i]` belongs to `rows[i]`.
        lengths: `(n,) int64`, how many tokens each of them has, counted or estimated.
    """

    rows: Positions
    prompts: list[Any]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, where: slice) -> Chunk:
        """Some of the rows, by their places in the chunk."""
        return Chunk(self.rows[where], self.prompts[where], self.lengths[where])


class Chunker:
    """Cuts requests into chunks that suit one engine, and the place where they are committed.

    Args:
        engine: Prepares the items; its batch size decides how large the first chunk is.
        seconds: How long a chunk should take, at least and at most.

    Attributes:
        tokens: How many tokens the next chunk has, about. Not texts: a number that is right for
            queries would be far too large for documents.
        adapts: Whether `tokens` follows the time that chunks take.
        seconds: As given.
        width: Components of a vector; None as long as none is known.
    """

    def __init__(self, engine: Engine, seconds: tuple[float, float] = CHUNK_SECONDS) -> None:
        self._engine = engine
        self.seconds = seconds
        self.tokens = engine.batch_size * _TOKENS_A_SEQUENCE
        self.adapts = True
        self.width: int | None = None

    def cut(self, request: Request, missing: Positions, refuse: Refuse) -> Iterator[Chunk]:
        """Chunks that take about `CHUNK_SECONDS`, the longest texts first within windows.

        The time from one chunk until the next is asked for counts as the time that it took.

        Args:
            request: The items.
            missing: `(n,) int64`, which of them to encode.
            refuse: Called with the refused items of a window, before its chunks, where there are
                any.

        Yields:
            Chunks, in which each of the missing items that is not refused is once.

        Raises:
            EngineError: The engine does not start, or does not prepare all items.
        """
        for window in _windows(request, missing):
            prepared = self._prepare(request, window)
            if prepared.refused:
                refuse({int(window[i]): reason for i, reason in prepared.refused.items()})
            order = _order(prepared)
            costs = np.cumsum(prepared.lengths[order] + _TEXT_OVERHEAD_TOKENS)
            at, spent = 0, 0
            while at < len(order):
                stop = int(np.searchsorted(costs, spent + self.tokens, side="right"))
                stop = max(min(stop, at + self._most_rows()), at + 1)
                chosen = order[at:stop]
                began = time.perf_counter()
                yield Chunk(
                    window[chosen], [prepared.prompts[i] for i in chosen], prepared.lengths[chosen]
                )
                self._adapt(time.perf_counter() - began, full=stop < len(order))
                at, spent = stop, int(costs[stop - 1])

    def _most_rows(self) -> int:
        return WINDOW_TEXTS if not self.width else CHUNK_BYTES // (4 * self.width)

    def _adapt(self, seconds: float, *, full: bool) -> None:
        """Make chunks smaller or larger after the last one took so long.

        Args:
            seconds: What the last chunk took.
            full: Whether it was not just what was left of a window.
        """
        least, most = self.seconds
        if not self.adapts:
            return
        if seconds > most:
            self.tokens = max(self.tokens // 2, 1)
        elif seconds < least and full:
            self.tokens *= 2

    def _prepare(self, request: Request, window: Positions) -> Prepared:
        prepared = self._engine.prepare(request.inputs(window.tolist()))
        if not len(prepared.prompts) == len(prepared.lengths) == len(window):
            raise EngineError(
                f"The engine ({self._engine.version}) prepared {len(prepared.prompts)} prompts "
                f"and {len(prepared.lengths)} lengths of {len(window)} {request.unit}s; one of "
                "each is needed. The engine's prepare() is at fault."
            )
        return prepared


def _windows(request: Request, missing: Positions) -> Iterator[Positions]:
    for start in range(0, len(missing), WINDOW_TEXTS):
        rows = missing[start : start + WINDOW_TEXTS]
        yield from (rows[run] for run in runs(request.sizes(rows.tolist()), WINDOW_BYTES))


def _order(prepared: Prepared) -> Positions:
    """Which of the prepared items to encode, in the order in which that is done."""
    order = np.arange(len(prepared.prompts))
    if not prepared.in_order:
        order = np.argsort(-prepared.lengths, kind="stable")
    return order[~np.isin(order, list(prepared.refused))] if prepared.refused else order
