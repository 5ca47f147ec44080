"""Engines for replicas: made on the cluster, they log to a file what they were asked."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from embcache.encoders.vllm_base import MakeEngine
from tests.fakes import FakeEngine, are_canaries


class LoggingEngine(FakeEngine):
    """Notes each text that it embeds: its process, and the text."""

    def __init__(self, log: Path, seconds_a_text: float, changed: float) -> None:
        super().__init__(batch_size=16)
        self.log, self.seconds, self.changed = log, seconds_a_text, changed

    def embed(self, prompts: Any) -> Any:
        result = super().embed(prompts)
        if not are_canaries(prompts):
            time.sleep(self.seconds * len(prompts))
            with self.log.open("a") as log:
                log.write("".join(f"{os.getpid()}\t{text}\n" for text in prompts))
        return result


def logging_engine(log: Path, seconds_a_text: float = 0.0, changed: float = 0.0) -> MakeEngine:
    """Makes engines that log to one file.

    Args:
        log: The file.
        seconds_a_text: What a text takes.
        changed: Added to every vector, as by another model.
    """
    return partial(_make, log, seconds_a_text, changed)


def _make(log: Path, seconds: float, changed: float, *_: Any) -> LoggingEngine:
    return LoggingEngine(log, seconds, changed)


def embedded(log: Path) -> list[tuple[int, str]]:
    """Process and text of everything that was embedded, in order."""
    if not log.exists():
        return []
    rows = (line.split("\t", 1) for line in log.read_text().splitlines())
    return [(int(pid), text) for pid, text in rows]
