"""What `cluster_kills.py` warms with: an engine that notes what it embeds."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _known import KnownEngine

from embcache.encoders.vllm_encoder import VllmEncoderWrapper
from embcache.engine.base import Embedded
from embcache.pipeline.canary_texts import LONG

_SLICE = 8  # texts; noted before they are embedded, so that what a kill destroys is counted


def text_of(number: int) -> str:
    """A text that no other number has; it is one line, and some hold what is no ASCII."""
    return f"text {number}{' naïve 東京の天気' * (number % 5 == 0)}"


class NotingEngine(KnownEngine):
    """Embeds at a set pace, and notes each text in a file before it does.

    Args:
        log: The file, which the engines of all processes append to.
        seconds_a_text: What a text takes.
    """

    batch_size = 16

    def __init__(self, log: Path, seconds_a_text: float) -> None:
        super().__init__()
        self._log = log
        self._seconds = seconds_a_text

    def embed(self, prompts: Sequence[str]) -> Embedded:
        """The right vectors; canaries take no time, and are not noted."""
        if LONG not in prompts:
            for at in range(0, len(prompts), _SLICE):
                self._work_on(prompts[at : at + _SLICE])
        return super().embed(prompts)

    def _work_on(self, texts: Sequence[str]) -> None:
        note = "".join(f"{os.getpid()}\t{text}\n" for text in texts)
        with self._log.open("ab") as log:
            log.write(note.encode())  # in one piece: it is small
        time.sleep(self._seconds * len(texts))


class MakeNotingEngine:
    """Makes engines for an encoder, in whatever process; see `NotingEngine`."""

    def __init__(self, log: Path, seconds_a_text: float) -> None:
        self._log = log
        self._seconds = seconds_a_text

    def __call__(self, *_: Any) -> NotingEngine:
        """An engine, whatever the encoder's arguments are."""
        return NotingEngine(self._log, self._seconds)


def noted(log: Path) -> list[str]:
    """All texts that were embedded, or would have been had there been no kill."""
    if not log.exists():
        return []
    return [line.partition("\t")[2] for line in log.read_text(encoding="utf-8").splitlines()]


def noting_encoder(model: Path, cache: str, log: Path, seconds_a_text: float) -> VllmEncoderWrapper:
    """The encoder as users make it, with an engine that notes.

    Args:
        model: Made by `_known.make_model`.
        cache: Directory of the cache, or its URL.
        log: What the engine notes its texts in.
        seconds_a_text: What a text takes.
    """
    engine = MakeNotingEngine(log, seconds_a_text)
    return VllmEncoderWrapper(str(model), dtype="float32", cache_path=cache, make_engine=engine)
