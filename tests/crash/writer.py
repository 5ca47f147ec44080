"""Run as a process that is going to be killed: encode texts into a cache, telling what is done.

Prints a line for every chunk that the space has acknowledged.
"""

from __future__ import annotations

import sys
import time

import lancedb  # noqa: F401 - takes a second; kills shall fall into writing
import numpy as np

from embcache.identity.identity import Identity
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import Database, Rows, Space, SpaceSnapshot
from tests.fakes import FakeEngine

IDENTITY = Identity("m", "r", "float32")
CHUNK = 40


class SlowEngine(FakeEngine):
    """Some milliseconds a chunk, so that a kill can fall between any two steps."""

    def embed(self, prompts):  # type: ignore[no-untyped-def]
        time.sleep(0.004)
        return super().embed(prompts)


class TellingSpace(Space):
    """Says which rows are committed, after they are."""

    def add(self, rows: Rows) -> SpaceSnapshot:
        snapshot = super().add(rows)
        print(len(rows), flush=True)
        return snapshot


def texts(count: int, first: int = 0) -> list[str]:
    return [f"text {i}" for i in range(first, first + count)]


def make(path: str) -> Pipeline:
    space = Database(path, writable=True).space(IDENTITY, "m", "v", store_text=True)
    space.__class__ = TellingSpace
    pipeline = Pipeline(SlowEngine(batch_size=CHUNK // 2), IDENTITY, space)
    pipeline.chunker.tokens = CHUNK * 18  # two words and what a text costs beside
    pipeline.chunker.adapts = False
    return pipeline


if __name__ == "__main__":
    folder, count, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    vectors, _ = make(folder).encode(TextRequest(texts=texts(count, first), show_progress=False))
    assert np.isfinite(vectors).all()
    print("done", flush=True)
