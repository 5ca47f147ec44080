"""The live display of a warm; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from embcache.cli.output import human_count
from embcache.warm import WarmStats

_LINE_EVERY_S = 10.0
# Time left follows the speed of this last while: a run that goes on after a stop begins with a
# million hits, and nothing of that says how long the misses take.
_SPEED_OVER_S = 120.0


class WarmDisplay:
    """Shows texts, hits and rates on standard error while a warm runs.

    Args:
        total: About how many texts there will be; None if that is not known.
        left_out: How many of them have been left out so far.
    """

    def __init__(self, total: int | None = None, left_out: Callable[[], int] = lambda: 0) -> None:
        self._left_out = left_out
        console = Console(stderr=True, markup=False, highlight=False)
        self._is_terminal = console.is_terminal
        # It draws the bar and estimates speed; the live display is the table's as well.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(40),
            TaskProgressColumn(),
            console=console,
            speed_estimate_period=_SPEED_OVER_S,
        )
        self._task = self._progress.add_task("reading", total=total)
        self._live = Live(self._progress, console=console, transient=True)
        self._last = time.monotonic()
        self._starting = False

    def __enter__(self) -> WarmDisplay:
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, stats: WarmStats) -> None:
        """Show these figures, if it is time to."""
        doing = "starting the engine" if stats.starting else "warming"
        done = stats.texts + self._left_out()
        if self._starting and not stats.starting:
            self._progress.reset(self._task, completed=done)  # its time says nothing of speed
        self._starting = stats.starting
        self._progress.update(self._task, completed=done, description=doing)
        figures = _figures(stats, self._progress.tasks[0].time_remaining)
        if self._is_terminal:
            self._live.update(Group(self._progress, _table(figures)))
        elif stats.starting or time.monotonic() - self._last > _LINE_EVERY_S:
            self._last = time.monotonic()
            line = ", ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{doing}: {line}", file=sys.stderr, flush=True)


def _figures(stats: WarmStats, left: float | None) -> dict[str, str]:
    """What is shown, by name."""
    seconds = max(stats.working_seconds, 1e-9)
    figures = {
        "texts": human_count(stats.texts),
        "hits": human_count(stats.hits),
        "committed": human_count(stats.committed),
        "texts/s": human_count(round(stats.texts / seconds)),
        "tokens/s": human_count(round(stats.tokens / seconds)),
        "time": _time(stats.seconds),
    }
    if left is not None:
        figures["left"] = f"about {_time(left)}"
    return figures


def _table(figures: dict[str, str]) -> Table:
    table = Table(*figures, box=None, pad_edge=False)
    table.add_row(*figures.values())
    return table


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
