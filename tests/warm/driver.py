"""`warm_cache.py` with a fast fake engine, as a process of its own that can be killed.

    python -m tests.warm.driver LOG SECONDS_A_CHUNK <arguments of warm_cache.py>

Appends the number of texts of each chunk to LOG.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lancedb  # noqa: F401 - takes a second; kills shall fall into the work

from embcache import encoders
from embcache.cli.warm import main
from embcache.pipeline import Pipeline
from tests.fakes import FakeEngine

LOG, SECONDS = Path(sys.argv[1]), float(sys.argv[2])


class LoggingEngine(FakeEngine):
    def embed(self, prompts: Any) -> Any:
        time.sleep(SECONDS)
        result = super().embed(prompts)
        with LOG.open("a") as log:
            log.write(f"{len(prompts)}\n")
        return result


def make(model: str, revision: Any, arguments: dict[str, Any], *_: Any) -> LoggingEngine:
    return LoggingEngine(arguments=arguments)


if __name__ == "__main__":
    encoders.VllmEngine = make  # type: ignore[assignment,misc]
    # Chunks of some 250 texts: a kill shall lose little of 20,000.
    Pipeline._adapt_chunk = lambda self, seconds, full: None  # type: ignore[method-assign]
    real = Pipeline.__init__

    def init(self: Pipeline, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self._chunk_tokens = 250 * 20

    Pipeline.__init__ = init  # type: ignore[method-assign]
    sys.argv = ["warm_cache.py", *sys.argv[3:]]
    print("ready", flush=True)
    main()
