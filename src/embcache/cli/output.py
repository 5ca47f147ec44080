"""How the command line prints: sizes, counts, texts, JSON, and a console."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from embcache.errors import quoted
from embcache.tools.describe import ValueCount

_PIPE_WIDTH = 110  # where there is no terminal to ask
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_size(size: float) -> str:
    """Bytes for people, in powers of 1000: `1.5 GB`."""
    for unit in _UNITS:
        if size < 999.95 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def human_count(count: int) -> str:
    """A count for people: `12,345`."""
    return f"{count:,}"


def human_time(moment: datetime | None) -> str:
    """A moment for people, to the minute, in this machine's time zone; `-` for none."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def one_line(text: str, limit: int = 80) -> str:
    """A text on one line of at most `limit` characters, without control characters."""
    flat = " ".join(text[: 4 * limit].split())  # enough for the limit, and a text may be a book
    flat = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in flat)
    if len(flat) <= limit and len(text) <= 4 * limit:
        return flat
    return flat[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def prompt_counts(counts: Iterable[ValueCount], most: int = 5) -> str:
    """The most frequent prompts: `'query: ' (1,500), 'passage: ' (20)`."""
    known = [(one.value, one.count) for one in counts if one.value is not None]
    named = [f"{quoted(value)} ({human_count(count)})" for value, count in known[:most]]
    return ", ".join(named + ([f"{len(known) - most:,} more"] if len(known) > most else []))


def print_error(error: BaseException | str) -> None:
    """`error: ...` on standard error."""
    print(f"error: {error}", file=sys.stderr)


def print_note(note: str) -> None:
    """Something beside the result, on standard error."""
    print(note, file=sys.stderr)


def print_json(value: Any) -> None:
    """A value as JSON on standard output; dataclasses, paths, times and arrays included."""
    # A pipe may be ASCII; where it is not, texts stay readable.
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    print(json.dumps(_plain(value), indent=2, ensure_ascii=ascii_only, allow_nan=False))


def print_report(report: object, *, as_json: bool) -> None:
    """What a command did: as JSON, or as it says it itself."""
    if as_json:
        print_json(report)
    else:
        print(report)


def console() -> Console:
    """A console on standard output, 110 wide where that is no terminal.

    Nothing is read as markup: model names, prompts and texts may hold square brackets.
    """
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


def _plain(value: Any) -> Any:
    """JSON-ready form; NaN and infinity, which JSON has not, become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return value
