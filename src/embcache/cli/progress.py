"""Live displays of what takes long; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from embcache.cli.output import human_count, human_duration, print_note
from embcache.cluster import ClusterStats
from embcache.errors import printable
from embcache.tools.transfer import TransferProgress
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
        self._progress = _bar()
        self._task = self._progress.add_task("reading", total=total, figures="")
        self._last = time.monotonic()
        self._starting = False
        self._dashboard: str | None = None

    def __enter__(self) -> WarmDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, stats: WarmStats) -> None:
        """Show these figures, if it is time to."""
        doing = "starting the engine" if stats.starting else "warming"
        if stats.starting and isinstance(stats, ClusterStats) and not stats.replicas:
            doing = "starting on Ray"
        done = stats.texts + self._left_out()
        begins = stats.starting and not self._starting
        if self._starting and not stats.starting:
            self._progress.reset(self._task, completed=done)  # its time says nothing of speed
        self._starting = stats.starting
        if isinstance(stats, ClusterStats) and stats.dashboard and not self._dashboard:
            self._dashboard = stats.dashboard
            print_note(f"Ray's dashboard: {stats.dashboard}")
        figures = _figures(stats)
        self._progress.update(self._task, completed=done, description=doing, figures=figures)
        if self._progress.disable and (begins or time.monotonic() - self._last > _LINE_EVERY_S):
            self._last = time.monotonic()
            left = self._progress.tasks[0].time_remaining
            about = "" if left is None else f", left about {human_duration(left)}"
            print(f"{doing}: {figures}{about}", file=sys.stderr, flush=True)


class TransferDisplay:
    """Shows rows and bytes on standard error while rows are copied."""

    def __init__(self) -> None:
        self._progress = _bar()
        self._task = self._progress.add_task("reading keys", total=None, figures="")
        self._name: str | None = None
        self._last = time.monotonic()

    def __enter__(self) -> TransferDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: TransferProgress) -> None:
        """Show these figures, if it is time to."""
        if done.name != self._name:  # the next space; the time of the last one says nothing of it
            self._name = done.name
            self._progress.reset(self._task, total=done.total)
        name = printable(done.name)
        rows = f"{human_count(done.rows)} of {human_count(done.total)} rows"
        figures = f"{name}: {rows}, {decimal(done.size)}"
        self._progress.update(
            self._task, completed=done.rows, description="copying", figures=figures
        )
        if self._progress.disable and time.monotonic() - self._last > _LINE_EVERY_S:
            self._last = time.monotonic()
            print(f"copying {figures}", file=sys.stderr, flush=True)


class _Bar(Progress):
    """A bar, and the task's figures in a line of their own."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines."""
        yield self.make_tasks_table(self.tasks)
        yield from (task.fields["figures"] for task in self.tasks)


def _bar() -> _Bar:
    """One that is gone in the end, and not there where there is no terminal."""
    console = Console(stderr=True, markup=False, highlight=False)
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(40),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=_SPEED_OVER_S,
    )


def _figures(stats: WarmStats) -> str:
    """What has been done, in a line."""
    seconds = max(stats.working_seconds, 1e-9)
    figures = {
        "texts": human_count(stats.texts),
        "hits": human_count(stats.hits),
        "committed": human_count(stats.committed),
        "texts/s": human_count(round(stats.texts / seconds)),
        "tokens/s": human_count(round(stats.tokens / seconds)),
        "time": human_duration(stats.seconds),
    }
    if isinstance(stats, ClusterStats):
        figures["replicas"] = human_count(stats.alive)
    return ", ".join(f"{name} {value}" for name, value in figures.items())
