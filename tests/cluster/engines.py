"""Engines for replicas: made on the cluster, they log to a file what they were asked."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embcache.encoders.vllm_base import MakeEngine
from embcache.errors import EngineError
from tests.fakes import FakeEngine, are_canaries

Fault = Literal["fails", "nan", "changed", "version", "start", "slow"]
REFUSED = "refused "


@dataclass(frozen=True)
class Faults:
    """What is wrong with all replicas but the first.

    Attributes:
        kind: What it is; "" for nothing.
        cache: Where the first one's canaries come to be: the others wait for them.
    """

    kind: Fault | Literal[""] = ""
    cache: Path = Path()


class LoggingEngine(FakeEngine):
    """Notes each text that it begins to embed: its process, and the text."""

    def __init__(self, log: Path, seconds_a_text: float, faults: Faults) -> None:
        super().__init__(batch_size=16)
        self.log, self.seconds, self.faults = log, seconds_a_text, faults
        self.kind = faults.kind if faults.kind and not _is_first(log) else ""
        if self.kind == "version":
            self.version = "fake 2.0"

    def start(self) -> None:
        if not self.started and self.kind:
            self._be_second()
        super().start()

    def _be_second(self) -> None:
        logging.getLogger("embcache.tests").warning("the second engine %s", self.kind)
        until = time.monotonic() + (0 if self.kind == "slow" else 60)
        pattern = "*.lance/_canaries.lance/_versions/*.manifest"
        while len(list(self.faults.cache.glob(pattern))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        if self.kind == "start":
            raise EngineError("no memory for the second")
        self.changed = float(self.kind == "changed")

    def prepare(self, texts: Any) -> Any:
        self.refuse = {text for text in texts if text.startswith(REFUSED)}
        return super().prepare(texts)

    def embed(self, prompts: Any) -> Any:
        result = super().embed(prompts)
        if not are_canaries(prompts):
            with self.log.open("a") as log:
                log.write("".join(f"{os.getpid()}\t{text}\n" for text in prompts))
            time.sleep(self.seconds * len(prompts) * (10 if self.kind == "slow" else 1))
            if self.kind == "fails":
                raise RuntimeError("the second is broken")
            if self.kind == "nan":
                result.vectors[:] = np.nan
        return result


def logging_engine(
    log: Path, seconds_a_text: float = 0.0, faults: Faults | None = None
) -> MakeEngine:
    """Makes engines that log to one file.

    Args:
        log: The file.
        seconds_a_text: What a text takes.
        faults: What is wrong with all but the first.
    """
    return partial(_make, log, seconds_a_text, faults or Faults())


def _make(log: Path, seconds: float, faults: Faults, *_: Any) -> LoggingEngine:
    return LoggingEngine(log, seconds, faults)


def _is_first(log: Path) -> bool:
    """Whether no other replica has asked before; the driver's own encoder never starts."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return True
    try:
        log.with_suffix(".first").open("x").close()
    except FileExistsError:
        return False
    return True


def embedded(log: Path) -> list[tuple[int, str]]:
    """Process and text of everything that was begun, in order."""
    if not log.exists():
        return []
    rows = (line.split("\t", 1) for line in log.read_text().splitlines())
    return [(int(pid), text) for pid, text in rows]
