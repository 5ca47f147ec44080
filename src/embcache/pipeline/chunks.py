"""What is missing, cut into chunks: each is one call of the engine and one commit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from embcache.engine.base import Engine, Prepared, RefusedTextError
from embcache.errors import EngineError, InputError
from embcache.pipeline.request import Request
from embcache.store.index import Positions

WINDOW_TEXTS = 16_384
"""Texts tokenized and sorted at a time: what bounds the memory of token ids."""

CHUNK_SECONDS = (5.0, 20.0)
"""What a chunk should take, at least and at most."""

_TOKENS_A_SEQUENCE = 256
# What a text costs beside its tokens: short texts run at 300 to 490 a second where 181 tokens run
# at 34, so about this many tokens' time.
_TEXT_OVERHEAD_TOKENS = 16


@dataclass(frozen=True)
class Chunk:
    """Rows of a request that are encoded and committed together.

    Attributes:
        rows: `(n,) int64`.
        prompts: What the engine gets for each.
    """

    rows: Positions
    prompts: list[Any]


class Chunker:
    """Cuts requests for one engine.

    Attributes:
        tokens: Of the next chunk, about. In tokens, not texts: what was right for queries would be
            far too long for documents.
        adapts: Whether `tokens` follows the time that chunks take.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens = engine.batch_size * _TOKENS_A_SEQUENCE
        self.adapts = True

    def cut(self, request: Request, missing: Positions) -> Iterator[Chunk]:
        """Chunks of 5 to 20 seconds, longest texts first within windows.

        The time until the next chunk is asked for counts as that of the last.

        Args:
            request: The items.
            missing: `(n,) int64`, which of them to encode.

        Raises:
            InputError: The tokenizer refuses a text; names the row.
            EngineError: The engine does not start.
        """
        for start in range(0, len(missing), WINDOW_TEXTS):
            window = missing[start : start + WINDOW_TEXTS]
            prepared = self._prepare(request, window)
            order = np.arange(len(window))
            if not prepared.in_order:
                order = np.argsort(-prepared.lengths, kind="stable")
            costs = np.cumsum(prepared.lengths[order] + _TEXT_OVERHEAD_TOKENS)
            at, spent = 0, 0
            while at < len(order):
                stop = int(np.searchsorted(costs, spent + self.tokens, side="right"))
                stop = max(stop, at + 1)
                chosen = order[at:stop]
                began = time.perf_counter()
                yield Chunk(window[chosen], [prepared.prompts[i] for i in chosen])
                self._adapt(time.perf_counter() - began, full=stop < len(order))
                at, spent = stop, int(costs[stop - 1])

    def _adapt(self, seconds: float, *, full: bool) -> None:
        """A chunk is what a kill can lose and what one commit costs: keep it at some seconds."""
        least, most = CHUNK_SECONDS
        if not self.adapts:
            return
        if seconds > most:
            self.tokens = max(self.tokens // 2, 1)
        elif seconds < least and full:
            self.tokens *= 2

    def _prepare(self, request: Request, window: Positions) -> Prepared:
        try:
            prepared = self._engine.prepare(request.inputs(window.tolist()))
            if not len(prepared.prompts) == len(prepared.lengths) == len(window):
                raise EngineError(
                    f"The engine ({self._engine.version}) prepared {len(prepared.prompts)} prompts "
                    f"and {len(prepared.lengths)} lengths of {len(window)} {request.unit}s; one of "
                    "each is needed. The engine's prepare() is at fault."
                )
            return prepared
        except RefusedTextError as error:
            row = int(window[error.index])
            raise InputError(f"row {row}, {request.show(row)}, {error.reason}.") from error
