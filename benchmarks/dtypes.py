"""What each dtype costs, in seconds and in accuracy: `make bench-dtypes`.

One engine for each dtype, in this process; they take turns, round by round, over texts that are
new in each round, so that all are measured on the same machine at the same time. Figures are
medians. The vectors are then compared with those in float32, text by text (`compare_spaces`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from _inputs import COLD_TOKENS, as_loader, make_texts, model_path, task
from _report import machine
from rich.console import Console
from rich.table import Table

from embcache import Cache, SpaceComparison, VllmEncoderWrapper
from embcache.encoders.arguments import Dtype

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
COLUMNS = ("dtype", "median", "float32 = 1", "cosine mean", "1st percentile", "minimum")

progress = Console(stderr=True)


def main() -> int:
    """Measure and print; returns the exit status."""
    arguments = _parse_arguments()
    logging.getLogger("embcache").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
        seconds = measure(arguments.model, Path(folder), arguments.texts, arguments.rounds)
        reference = Cache(Path(folder, "float32")).space()
        compared = {d: Cache(Path(folder, d)).space().compare(reference) for d in DTYPES}
    print_table(seconds, compared, arguments)
    return 0


def measure(model: str, folder: Path, texts: int, rounds: int) -> dict[str, list[float]]:
    """Encode with one engine for each dtype, in turns.

    Args:
        model: Hub name or directory.
        folder: Where caches are kept: the vectors stay in `folder/<dtype>`.
        texts: How many texts a round has.
        rounds: How many rounds are measured.

    Returns:
        The seconds of each round, by dtype.
    """
    encoders = {
        dtype: VllmEncoderWrapper(model, dtype=dtype, cache_path=folder / dtype) for dtype in DTYPES
    }
    seconds: dict[str, list[float]] = {dtype: [] for dtype in encoders}
    for number in range(rounds + 1):
        for dtype, encoder in encoders.items():
            with progress.status(f"round {number} of {rounds}, {dtype}"):
                # The first round starts and compiles the engines: few texts, not counted.
                some = make_texts(texts if number else 32, COLD_TOKENS, seed=number)
                began = time.perf_counter()
                encoder.encode(as_loader(some), show_progress_bar=False, **task())
                if number:
                    seconds[dtype].append(time.perf_counter() - began)
    for encoder in encoders.values():
        encoder.cleanup()
    return seconds


def print_table(
    seconds: dict[str, list[float]],
    compared: Mapping[Any, SpaceComparison],
    arguments: argparse.Namespace,
) -> None:
    """Print one row for each dtype.

    Args:
        seconds: The seconds of each round, by dtype.
        compared: By dtype, how far its vectors are from those in float32.
        arguments: The command line's, for the title.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    title = f"{arguments.texts:,} texts of 10 to 250 tokens, {arguments.rounds} rounds"
    table = Table(*COLUMNS, title=title, title_justify="left")
    for dtype, times in seconds.items():
        found = compared[dtype]
        table.add_row(
            dtype,
            f"{median(times):.2f} s",
            f"{median(times) / median(seconds['float32']):.2f}",
            f"{found.cosine_mean:.6f}",
            f"{found.cosine_p1:.6f}",
            f"{found.cosine_min:.6f}",
        )
    console.print(table)
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), highlight=False)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=model_path(), help="hub name or folder")
    parser.add_argument("--texts", type=int, default=200, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
