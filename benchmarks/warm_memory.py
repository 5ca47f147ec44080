"""What memory warming takes, and how that grows with the corpus: `make bench-memory`.

A parquet file of made-up texts of some 220 characters is warmed twice, each time in a new process:
cold, nothing cached, and warm, everything cached. The engine is a stand-in that returns random
vectors of 16 components at once, so that what is measured is embcache with its imports: reading,
hashing, lookup and writing.

Expected: the peak grows by at most 64 bytes a text between 100,000 and 1,000,000 texts, cold and
warm: the index takes 24 bytes a key (33 while it is built), and the rest is malloc's, which gets no
larger from some hundred thousand texts on. A warm run checks at least 500,000 texts a second.
Peaks of one size differ by 10 MB from run to run: the table has the median of several rounds. With
few texts the growth means nothing. A figure that is missed is printed and no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _report import machine
from rich.console import Console
from rich.table import Table

DIM = 16
WORDS_A_TEXT = 40
ROW_GROUP = 10_000
MOST_BYTES_A_KEY = 64
LEAST_TEXTS_A_SECOND = 500_000
ANSWER = "embcache-memory "
PHASES = ("cold", "warm")

Figures = dict[tuple[str, int], list[tuple[float, float]]]
"""By phase and number of texts, for each round: the peak of memory in bytes, and texts a second."""

progress = Console(stderr=True)


class StandIn:
    """An engine that costs nothing; see `embcache.engine.base.Engine`."""

    version = "stand-in 1"
    dtype = "float32"
    batch_size = 128
    started = True

    def __init__(self, *_: Any) -> None:
        self._rng = np.random.default_rng(0)

    def start(self) -> None:
        """Do nothing: there is nothing to start."""

    def prepare(self, texts: Any) -> Any:
        """Take the texts as prompts, and guess their lengths in tokens."""
        from embcache.engine.base import Prepared

        return Prepared(list(texts), np.array([len(text) // 4 for text in texts], np.int64))

    def embed(self, prompts: Any) -> Any:
        """Random vectors, `(n, DIM) float32`, and token counts of 0."""
        from embcache.engine.base import Embedded

        vectors = self._rng.standard_normal((len(prompts), DIM), np.float32)
        return Embedded(vectors, np.zeros(len(prompts), np.int32))

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def main() -> int:
    """Measure and print; or, in a process that is measured, warm. Returns the exit status."""
    arguments = _parse_arguments()
    if arguments.child:
        warm(Path(arguments.child), arguments.texts[0])
        return 0
    small, large = arguments.texts
    figures: Figures = defaultdict(list)
    for number in range(arguments.rounds):
        for texts in (small, large):
            with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
                with progress.status(f"round {number + 1}: {texts:,} texts are made"):
                    write_texts(Path(folder), texts)
                for phase in PHASES:
                    with progress.status(f"round {number + 1}: {texts:,} texts, {phase}"):
                        figures[phase, texts].append(run(Path(folder), texts))
    print_table(figures, small, large)
    return 0


def write_texts(folder: Path, count: int) -> None:
    """Write a parquet file of made-up texts, and the folder of a model that is none.

    Args:
        folder: Where they are written.
        count: How many texts.
    """
    rng = random.Random(0)
    words = [f"w{number}" for number in range(1000)]
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(folder / "texts.parquet", schema) as file:
        for start in range(0, count, ROW_GROUP):
            rows = range(start, min(start + ROW_GROUP, count))
            texts = [f"passage {i} " + " ".join(rng.choices(words, k=WORDS_A_TEXT)) for i in rows]
            file.write_table(pa.table({"text": texts}, schema))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")


def run(folder: Path, texts: int) -> tuple[float, float]:
    """Warm in a new process.

    Args:
        folder: Has the texts, and the cache.
        texts: How many texts there are.

    Returns:
        The process's peak of memory in bytes, and texts a second.

    Raises:
        RuntimeError: The process failed; the message holds what it wrote.
    """
    result = subprocess.run(
        [sys.executable, __file__, "--child", str(folder), "--texts", str(texts), str(texts)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EMBCACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1"},
    )
    for line in result.stdout.splitlines():
        if line.startswith(ANSWER):
            found = json.loads(line.removeprefix(ANSWER))
            return found["peak"], found["rate"]
    raise RuntimeError(f"{result.stdout}\n{result.stderr}\nexit code {result.returncode}")


def warm(folder: Path, texts: int) -> None:
    """Warm over the folder's texts, and print peak and rate: what the new process does.

    Args:
        folder: Has the texts and the model's folder, and gets the cache.
        texts: How many texts there are.

    Raises:
        RuntimeError: Not all texts were warmed.
    """
    from embcache.warm.malloc import limit_arenas

    limit_arenas()  # as the command `embcache warm` does, before anything has threads
    import lancedb  # noqa: F401 - a warm run imports none, and peaks shall compare

    from embcache import VllmEncoderWrapper
    from embcache.warm import Columns, Warmer
    from embcache.warm.sources import read_files

    encoder = VllmEncoderWrapper(
        str(folder / "model"), dtype="float32", cache_path=folder / "cache", make_engine=StandIn
    )
    batches = read_files("parquet", [str(folder / "texts.parquet")], Columns(), print)
    began = time.perf_counter()
    stats = Warmer(encoder).run(batches)
    seconds = time.perf_counter() - began
    if stats.hits + stats.encoded != texts:
        raise RuntimeError(f"{stats} instead of {texts:,} texts")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(ANSWER + json.dumps({"peak": peak, "rate": texts / seconds}), flush=True)


def print_table(figures: Figures, small: int, large: int) -> None:
    """Print a row for cold and one for warm, and which expectations are missed.

    Args:
        figures: What was measured.
        small: The smaller number of texts.
        large: The larger number of texts.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    table = Table(
        "run",
        f"peak, {small:,} texts",
        f"peak, {large:,} texts",
        "growth a text",
        f"texts/s, {large:,} texts",
        title="Peak memory of a warming process, imports included, without an engine",
        title_justify="left",
    )
    missed = []
    for phase in PHASES:
        low, high = (median(peak for peak, _ in figures[phase, n]) for n in (small, large))
        rate = median(rate for _, rate in figures[phase, large])
        growth = (high - low) / (large - small)
        table.add_row(
            phase, f"{low / 1e6:.0f} MB", f"{high / 1e6:.0f} MB", f"{growth:.0f} B", f"{rate:,.0f}"
        )
        if growth > MOST_BYTES_A_KEY:
            missed.append(f"{phase}: more than {MOST_BYTES_A_KEY} bytes a text")
        if phase == "warm" and rate < LEAST_TEXTS_A_SECOND:
            missed.append(f"warm: less than {LEAST_TEXTS_A_SECOND:,} texts a second")
    console.print(table)
    if large >= 1_000_000:  # with fewer the start counts for more than the texts
        console.print("as expected" if not missed else "MISSED: " + "; ".join(missed))
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), highlight=False)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--texts", type=int, nargs=2, default=(100_000, 1_000_000), metavar=("FEW", "MANY")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child and not 0 < arguments.texts[0] < arguments.texts[1]:
        parser.error("--texts: give a smaller number and a larger one")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
