"""What embcache gains, beside mteb's own cache and wrapper, in one run: `make bench`.

Each contender runs in a new process each round, and they take turns encode by encode (A B C A B
C ...), so that a machine that gets slower meanwhile gets slower for all. Figures are medians,
ratios are ratios of medians. A goal that is missed is reported and no failure; a wrong vector is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _process import ContenderError, Process
from _report import Goal, Part, Samples, machine, print_report, to_json, to_markdown
from rich.console import Console

LEAST_COSINE = 0.9999  # batches of other sizes add up in another order, no more than that

progress = Console(stderr=True)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        texts: How many texts one encode has.
        rounds: How many times each contender is started in a new process.
        repeats: How often it encodes in each of them.
    """

    texts: int
    rounds: int
    repeats: int = 1


FULL = {"warm": Size(50_000, 9), "cold": Size(1_000, 3, 3), "start": Size(1_000, 1)}
QUICK = {"warm": Size(2_000, 2), "cold": Size(32, 1), "start": Size(32, 1)}


def main() -> int:
    """Measure, print, and write what was asked for; returns the exit status."""
    arguments = _parse_arguments()
    sizes = QUICK if arguments.quick else FULL
    about = machine()
    parts, goals = [], []
    try:
        for name in [arguments.only] if arguments.only else MEASURE:
            with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
                part, found = MEASURE[name](Path(folder), sizes[name])
            parts.append(part)
            goals += [] if arguments.quick else found  # goals are about the full size
    except ContenderError as error:
        print(error, file=sys.stderr)
        return 1
    print_report(parts, goals, about)
    if arguments.markdown:
        arguments.markdown.write_text(to_markdown(parts, goals, about), encoding="utf-8")
    if arguments.json:
        report = json.dumps(to_json(parts, goals, about), indent=1)
        arguments.json.write_text(report, encoding="utf-8")
    return 0


def measure_warm(folder: Path, size: Size) -> tuple[Part, list[Goal]]:
    """Measure the first encode() of a process when every text is cached.

    Args:
        folder: An empty folder for caches and vectors.
        size: How much is measured.
    """
    part = Part(
        f"Warm: first encode() of a new process, {size.texts:,} cached texts of 30 to 250 tokens, "
        f"rounds: {size.rounds}",
        size.texts,
        {
            "embcache": Samples("embcache"),
            "mteb": Samples("mteb CachedEmbeddingWrapper, NumpyCache"),
            "floor": Samples("np.load of the matrix"),
        },
    )
    with Process("fill-warm", folder, size.texts):
        pass
    take_turns("warm", part, folder, size)
    return part, [_goal(part, "mteb", 4.0, "warm, at least 4x faster than CachedEmbeddingWrapper")]


def measure_cold(folder: Path, size: Size) -> tuple[Part, list[Goal]]:
    """Measure a real engine, started and warmed up, when nothing is cached.

    Args:
        folder: An empty folder for caches and vectors.
        size: How much is measured.
    """
    part = Part(
        f"Cold: {size.texts:,} texts of 10 to 250 tokens, nothing cached, all-MiniLM-L6-v2 in "
        f"float32, rounds x repeats: {size.rounds} x {size.repeats}",
        size.texts,
        {
            "embcache": Samples("embcache"),
            "mteb": Samples("mteb VllmEncoderWrapper, its defaults"),
            "vllm": Samples("vLLM by itself, embcache's settings"),
        },
    )
    take_turns("cold", part, folder, size)
    _check_same_model(folder)
    return part, [
        _goal(part, "mteb", 1.8, "cold, at least 1.8x faster than mteb's wrapper"),
        _goal(part, "vllm", 1 / 1.05, "cold, at most 5% slower than vLLM by itself"),
    ]


def measure_start(folder: Path, size: Size) -> tuple[Part, list[Goal]]:
    """Measure the time from the start of a process to the vectors.

    Args:
        folder: An empty folder for caches and vectors.
        size: How much is measured.
    """
    part = Part(
        f"Start of a process to the vectors of {size.texts:,} texts, imports included",
        size.texts,
        {
            "embcache": Samples("embcache, all cached"),
            "vllm": Samples("vLLM by itself, no cache"),
        },
    )
    with Process("fill-start", folder, size.texts):
        pass
    take_turns("start", part, folder, size)
    for samples in part.contenders.values():  # here the time before belongs to it
        samples.encode_s = [samples.encode_s[0] + samples.before_s.pop()]
    return part, []


MEASURE = {"warm": measure_warm, "cold": measure_cold, "start": measure_start}


def take_turns(kind: str, part: Part, folder: Path, size: Size) -> None:
    """Start every contender once a round, then let one after the other encode.

    Args:
        kind: Beginning of the contenders' names in `_contenders.CONTENDERS`: "warm", say.
        part: Has the contenders; gets their samples.
        folder: Where caches and vectors lie.
        size: How much is measured.
    """
    for number in range(size.rounds):
        with ExitStack() as stack, progress.status("") as status:
            contenders = []
            for name, samples in part.contenders.items():
                status.update(f"{kind}, round {number + 1} of {size.rounds}: {name} gets ready")
                process = stack.enter_context(Process(f"{kind}-{name}", folder, size.texts))
                samples.before_s.append(process.before_s)
                contenders.append((process, samples))
            status.update(f"{kind}, round {number + 1} of {size.rounds}: measuring")
            for _ in range(size.repeats):
                for process, samples in contenders:
                    samples.encode_s.append(process.encode())


def _check_same_model(folder: Path) -> None:
    """Raise unless all contenders computed the same vectors, as far as float32 goes."""
    expected = np.load(folder / "vllm.npy")
    for name in ("embcache", "mteb"):
        cosine = float((np.load(folder / f"{name}.npy") * expected).sum(axis=1).min())
        if not cosine >= LEAST_COSINE:
            raise ContenderError(f"WRONG VECTORS: cosine {cosine} between {name}'s and vLLM's.")


def _goal(part: Part, name: str, least: float, text: str) -> Goal:
    return Goal(text, least, part.ratio(name), part.ratios(name))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few texts, few rounds: a smoke test")
    parser.add_argument("--only", choices=MEASURE, help="one part of it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
