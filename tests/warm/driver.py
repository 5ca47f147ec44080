"""`warm_cache.py` with a fast fake engine, as a process of its own that can be killed.

Processes come from a fork server that has imported what takes seconds: 20 of them start in the time
of one, and a kill falls into the work, not into the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from embcache.cli.warm import main
from embcache.encoders import vllm_encoder as encoders
from embcache.pipeline.pipeline import Pipeline
from tests.fakes import FakeEngine, are_canaries

CHUNK_TEXTS = 100


def start(folder: Path, model: Path, seconds: float, *more: str) -> BaseProcess:
    """Warm `folder`/corpus.jsonl into `folder`/cache; returns when its work begins.

    Standard output and error go to the files `folder`/out and /err; the number of texts of each
    chunk that was encoded is appended to `folder`/log.

    Args:
        folder: Where all of that is.
        model: Directory of the model.
        seconds: What a chunk takes beside the commit.
        *more: Options of `warm_cache.py`.
    """
    arguments = ["--model", str(model), "--dtype", "float32", "--cache", str(folder / "cache")]
    arguments += ["--jsonl", str(folder / "corpus.jsonl"), *more]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mteb", "typer", "rich.live", __name__])
    ready = context.Event()
    process = context.Process(target=_run, args=(folder, seconds, arguments, ready))
    process.start()
    assert ready.wait(60)
    return process


def _run(folder: Path, seconds: float, arguments: list[str], ready: Any) -> None:
    import lancedb  # noqa: F401 - it starts a thread, so not in the fork server

    for name, number in (("out", 1), ("err", 2)):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    encoders.VllmEngine = lambda *_: _LoggingEngine(  # type: ignore[assignment,misc]
        folder / "log", seconds
    )
    _small_chunks()
    sys.argv = ["warm_cache.py", *arguments]
    ready.set()
    main()


class _LoggingEngine(FakeEngine):
    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__()
        self.log, self.seconds = log, seconds

    def embed(self, prompts: Any) -> Any:
        result = super().embed(prompts)
        if are_canaries(prompts):
            return result
        time.sleep(self.seconds)
        with self.log.open("a") as log:
            log.write(f"{len(prompts)}\n")
        return result


def _small_chunks() -> None:
    """A hundredth of a corpus of 10,000: where a chunk takes seconds, a corpus takes hours."""
    real = Pipeline.__init__

    def init(self: Pipeline, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.chunker.tokens = CHUNK_TEXTS * 18  # 2 words a text, and 16 for its overhead
        self.chunker.adapts = False

    Pipeline.__init__ = init  # type: ignore[method-assign]
