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
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        console = Console(stderr=True, markup=False, highlight=False)
        self._live = Live(console=console, transient=True, refresh_per_second=4)
        self._is_terminal = console.is_terminal
        self._last = time.monotonic()

    def __enter__(self) -> WarmDisplay:
        if self._is_terminal and not self._quiet:
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
        if self._quiet:
            return
        if self._is_terminal:
            self._live.update(_table(stats))
        elif time.monotonic() - self._last > _LINE_EVERY_S:
            self._last = time.monotonic()
            print(_line(stats), file=sys.stderr, flush=True)


def _figures(stats: WarmStats) -> dict[str, str]:
    seconds = max(stats.seconds, 1e-9)
    return {
        "texts": human_count(stats.texts),
        "hits": human_count(stats.hits),
        "committed": human_count(stats.encoded),
        "texts/s": human_count(round(stats.texts / seconds)),
        "encoded/s": f"{stats.encoded / seconds:,.1f}",
        "seconds": f"{stats.seconds:,.0f}",
    }


def _table(stats: WarmStats) -> Table:
    figures = _figures(stats)
    table = Table(*figures, box=None, pad_edge=False)
    table.add_row(*figures.values())
    return table


def _line(stats: WarmStats) -> str:
    return ", ".join(f"{name} {value}" for name, value in _figures(stats).items())
