"""The live display of a warm; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from embcache.cli.output import human_count
from embcache.warm import WarmStats

_LINE_EVERY_S = 10.0


class WarmDisplay:
    """Shows texts, hits and rates on standard error while a warm runs.

    Args:
        total: About how many texts there will be; None if that is not known.
        quiet: Show nothing.
    """

    def __init__(self, total: int | None = None, *, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        console = Console(stderr=True, markup=False, highlight=False)
        self._live = Live(console=console, transient=True, refresh_per_second=4)
        self._is_terminal = console.is_terminal
        self._last = time.monotonic()

    def __enter__(self) -> WarmDisplay:
        if self._is_terminal and not self._quiet:
            self._live.start()
            self._live.update("reading, and starting the engine where texts are missing ...")
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
        if self._quiet:
            return
        if self._is_terminal:
            self._live.update(_table(_figures(stats, self._total)))
        elif time.monotonic() - self._last > _LINE_EVERY_S:
            self._last = time.monotonic()
            print(_line(_figures(stats, self._total)), file=sys.stderr, flush=True)


def _figures(stats: WarmStats, total: int | None) -> dict[str, str]:
    """What is shown, by name."""
    seconds = max(stats.seconds, 1e-9)
    done = stats.hits + stats.encoded  # texts of the window at work are not counted yet
    figures = {
        "texts": human_count(done),
        "hits": human_count(stats.hits),
        "encoded": human_count(stats.encoded),
        "texts/s": human_count(round(done / seconds)),
        "tokens/s": human_count(round(stats.tokens / seconds)),
        "time": _time(stats.seconds),
    }
    if total is not None and done:
        figures["left, about"] = _time(max(total - done, 0) * seconds / done)
    return figures


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _table(figures: dict[str, str]) -> Table:
    table = Table(*figures, box=None, pad_edge=False)
    table.add_row(*figures.values())
    return table


def _line(figures: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())
