"""What memory warming takes, and how that grows with the corpus: `make bench-memory`.

A parquet file of made-up texts of some 220 characters is read three times, each time in a new
process: planned (`--dry-run`), then warmed cold, nothing cached, and warm, everything cached. The
engine is a stand-in that returns random vectors of 16 components at once, so that what is measured
is embcache with its imports: reading, hashing, lookup and writing.

`--size 60000` makes the texts longer, `--giants 5` puts so many of 10 MB between them:
ARGS='--size 60000 --texts 5000 20000 --rounds 1'.

Expected: the peak grows by at most 64 bytes a text between 100,000 and 1,000,000 texts, cold and
warm: the index takes 24 bytes a key (33 while it is built), and the rest is malloc's, which gets no
larger from some hundred thousand texts on. It is at most 256 MB above what the process took after
one text, and those bytes a text, however long the texts. A warm run checks at least 500,000
texts a second, of 220 characters. Peaks of one size differ by 10 MB from run to run: the table has
the median of several rounds. With few texts the growth means nothing. A figure that is missed is
printed and no failure.
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
SIZE = 220
GIANT = 10_000_000
ROW_GROUP_BYTES = 32_000_000
ROW_GROUP = 10_000
MOST_BYTES_A_KEY = 64
MOST_ABOVE = 256_000_000
LEAST_TEXTS_A_SECOND = 500_000
ANSWER = "embcache-memory "
PHASES = ("dry run", "cold", "warm")

Figures = dict[tuple[str, int], list[tuple[float, float, float]]]
"""By phase and number of texts, for each round: the peak of memory in bytes, how much of that came
with the texts, and texts a second."""

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
        warm(Path(arguments.child), arguments.texts[0], dry=arguments.dry)
        return 0
    small, large = arguments.texts
    figures: Figures = defaultdict(list)
    for number in range(arguments.rounds):
        for texts in (small, large):
            with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
                with progress.status(f"round {number + 1}: {texts:,} texts are made"):
                    write_texts(Path(folder), texts, arguments.size, arguments.giants)
                for phase in PHASES:
                    with progress.status(f"round {number + 1}: {texts:,} texts, {phase}"):
                        figures[phase, texts].append(run(Path(folder), texts, phase))
    print_table(figures, small, large, arguments.size)
    return 0


def write_texts(folder: Path, count: int, size: int, giants: int) -> None:
    """Write a parquet file of made-up texts, and the folder of a model that is none.

    Args:
        folder: Where they are written.
        count: How many texts.
        size: Characters of a text, about.
        giants: How many of them have 10 MB instead.
    """
    rng = random.Random(0)
    words = " ".join(rng.choices([f"w{number}" for number in range(1000)], k=GIANT // 4))
    large = set(range(count // (2 * giants), count, count // giants)) if giants else set()
    schema = pa.schema([("text", pa.string())])
    at_once = max(1, min(ROW_GROUP, ROW_GROUP_BYTES // size))
    with pq.ParquetWriter(folder / "texts.parquet", schema) as file:
        for start in range(0, count, at_once):
            texts = []
            for i in range(start, min(start + at_once, count)):
                length = GIANT if i in large else size
                at = rng.randrange(max(1, len(words) - length))
                texts.append(f"passage {i} {words[at : at + length]}")
            file.write_table(pa.table({"text": texts}, schema))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")


def run(folder: Path, texts: int, phase: str) -> tuple[float, float, float]:
    """Warm or plan in a new process.

    Args:
        folder: Has the texts, and the cache.
        texts: How many texts there are.
        phase: One of `PHASES`.

    Returns:
        The process's peak of memory in bytes, how much of it came after one text, and texts a
        second.

    Raises:
        RuntimeError: The process failed; the message holds what it wrote.
    """
    command = [sys.executable, __file__, "--child", str(folder), "--texts", str(texts), str(texts)]
    result = subprocess.run(
        [*command, *(["--dry"] if phase == "dry run" else [])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EMBCACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1"},
    )
    for line in result.stdout.splitlines():
        if line.startswith(ANSWER):
            found = json.loads(line.removeprefix(ANSWER))
            return found["peak"], found["above"], found["rate"]
    raise RuntimeError(f"{result.stdout}\n{result.stderr}\nexit code {result.returncode}")


def warm(folder: Path, texts: int, *, dry: bool) -> None:
    """Warm over the folder's texts, and print peak and rate: what the new process does.

    Args:
        folder: Has the texts and the model's folder, and gets the cache.
        texts: How many texts there are.
        dry: Whether only to plan it.

    Raises:
        RuntimeError: Not all texts were warmed.
    """
    from embcache.warm.malloc import limit_arenas

    limit_arenas()  # as the command `embcache warm` does, before anything has threads
    import lancedb  # noqa: F401 - a warm run imports none, and peaks shall compare

    from embcache import VllmEncoderWrapper
    from embcache.warm import Columns, TextBatch, Warmer, plan
    from embcache.warm.sources import read_files

    encoder = VllmEncoderWrapper(
        str(folder / "model"), dtype="float32", cache_path=folder / "cache", make_engine=StandIn
    )
    first = [TextBatch(["a text by itself"], "", "")]  # what is imported at the first text
    if dry:
        plan(Warmer(encoder), encoder, first)
    else:
        Warmer(encoder).run(first)
    batches = read_files("parquet", [str(folder / "texts.parquet")], Columns(), print)
    before = peak_memory()
    began = time.perf_counter()
    if dry:
        done = plan(Warmer(encoder), encoder, batches).texts
    else:
        stats = Warmer(encoder).run(batches)
        done = stats.hits + stats.encoded
    seconds = time.perf_counter() - began
    if done != texts:
        raise RuntimeError(f"{done:,} instead of {texts:,} texts")
    found = {"peak": peak_memory(), "above": peak_memory() - before, "rate": texts / seconds}
    print(ANSWER + json.dumps(found), flush=True)


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def print_table(figures: Figures, small: int, large: int, size: int) -> None:
    """Print a row for cold and one for warm, and which expectations are missed.

    Args:
        figures: What was measured.
        small: The smaller number of texts.
        large: The larger number of texts.
        size: Characters of a text.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    table = Table(
        "run",
        f"peak, {small:,} texts",
        f"peak, {large:,} texts",
        "above one text",
        "growth a text",
        f"texts/s, {large:,} texts",
        title=f"Peak memory of a warming process without an engine, texts of {size:,} characters",
        title_justify="left",
    )
    missed = []
    for phase in PHASES:
        low, high = (median(peak for peak, _, _ in figures[phase, n]) for n in (small, large))
        above = median(above for _, above, _ in figures[phase, large])
        rate = median(rate for _, _, rate in figures[phase, large])
        growth = (high - low) / (large - small)
        table.add_row(
            phase,
            f"{low / 1e6:.0f} MB",
            f"{high / 1e6:.0f} MB",
            f"{above / 1e6:.0f} MB",
            f"{growth:.0f} B",
            f"{rate:,.0f}",
        )
        if above > MOST_ABOVE + large * MOST_BYTES_A_KEY:
            missed.append(f"{phase}: more than {MOST_ABOVE / 1e6:.0f} MB above one text")
        if large < 1_000_000:  # with fewer the start counts for more than the texts
            continue
        if growth > MOST_BYTES_A_KEY and phase != "dry run":
            missed.append(f"{phase}: more than {MOST_BYTES_A_KEY} bytes a text")
        if phase == "warm" and size <= SIZE and rate < LEAST_TEXTS_A_SECOND:
            missed.append(f"warm: less than {LEAST_TEXTS_A_SECOND:,} texts a second")
    console.print(table)
    console.print("as expected" if not missed else "MISSED: " + "; ".join(missed))
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), highlight=False)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--texts", type=int, nargs=2, default=(100_000, 1_000_000), metavar=("FEW", "MANY")
    )
    parser.add_argument("--size", type=int, default=SIZE, help="characters of a text, about")
    parser.add_argument("--giants", type=int, default=0, help="so many texts have 10 MB instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child and not 0 < arguments.texts[0] < arguments.texts[1]:
        parser.error("--texts: give a smaller number and a larger one")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
