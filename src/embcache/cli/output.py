"""How the command line prints: counts, texts, JSON, errors, and a console."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

from embcache.errors import EmbcacheError, is_unseen, printable, quoted
from embcache.identity.home import home_needed
from embcache.store import Location
from embcache.tools.describe import ValueCount

_PIPE_WIDTH = 110  # where there is no terminal to ask
# What messages of the library name, and what that is here.
_WORDS = {
    "`check_space`": "embcache check",
    "`compact_space`": "embcache compact",
    "`merge_caches`": "embcache merge",
    "`transfer`": "embcache push or embcache pull",
    "`CachedSpace.remove`": "embcache rm",
    "storage_options": "--storage-option",
    "Columns(text=..., title=...)": "--text-column, --title-column",
}


def human_duration(seconds: float) -> str:
    """Seconds for people: `0:01:50`."""
    return str(timedelta(seconds=round(seconds)))


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
    print(printable(f"error: {error}"), file=sys.stderr)


def print_note(note: str) -> None:
    """Something beside the result, on standard error."""
    print(printable(note), file=sys.stderr)


def print_text(text: object) -> None:
    """A result for people, on standard output; names and texts in it may be anybody's."""
    print(printable(str(text)))


def print_hints(message: str, ctx: typer.Context) -> None:
    """Say, on standard error, what a message of the library is called on the command line.

    The library names its functions and arguments. What a person can type for them: the options of
    the running command that are mentioned and were not given, and commands.

    Args:
        message: What was said.
        ctx: Of the running command.
    """
    words = _WORDS | {
        f"{parameter.name}=": "/".join([max(parameter.opts, key=len), *parameter.secondary_opts])
        for parameter in ctx.command.params
        if parameter.param_type_name == "option" and not _was_given(parameter.name, ctx)
    }
    said = dict.fromkeys(
        f"{word.strip('`=')} is {typed}"
        for word, typed in words.items()
        if re.search(rf"(?<!\w){re.escape(word)}", message)
    )
    if said:
        print_note(f"On the command line, {'; '.join(said)}.")


def _was_given(name: str | None, ctx: typer.Context) -> bool:
    source = ctx.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


class EmbcacheCommand(TyperCommand):
    """A command that turns what the library raises on purpose into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            with home_needed():
                return super().invoke(ctx)
        except EmbcacheError as error:
            print_error(error)
            print_hints(str(error), ctx)
            raise typer.Exit(1) from error


def run(app: typer.Typer, name: str | None = None) -> None:
    """Run a command line; ends the process.

    Args:
        app: Its commands.
        name: What it calls itself; None for the file that was run.
    """
    # Read when torch is loaded; else it tells of NUMA nodes between our lines.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if logging.lastResort is not None:  # what writes warnings where nobody has set up logging
        logging.lastResort.setFormatter(_PrintableLog())
    if sys.stdout is None:  # closed (`>&-`): what is printed goes nowhere
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace")  # texts have characters that terminals lack
    try:
        try:
            app(prog_name=name)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, say) has seen enough. Python flushes once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_json(value: Any) -> None:
    """A value as JSON on standard output; dataclasses, paths, times and arrays included."""
    # A pipe may be ASCII; where it is not, texts stay readable.
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    text = json.dumps(plain(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)
    # JSON lets a text's DEL, 8-bit controls and overrides of direction stand as they are.
    print("".join(json.dumps(char)[1:-1] if is_unseen(char) else char for char in text))


def print_report(report: object, *, as_json: bool) -> None:
    """What a command did: as JSON, or as it says it itself."""
    if as_json:
        print_json(report)
    else:
        print_text(report)


def console() -> Console:
    """A console on standard output, 110 wide where that is no terminal.

    Nothing is read as markup: model names, prompts and texts may hold square brackets.
    """
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return _Printable(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)


class _Printable(Console):
    """A console on which names and texts control nothing; rich itself lets escapes through."""

    def render_str(self, text: str, **arguments: Any) -> Text:
        """What becomes of every plain string, those in a table's cells included."""
        return super().render_str(printable(text), **arguments)


class _PrintableLog(logging.Formatter):
    """Log lines name tables, models and texts, too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def plain(value: Any) -> Any:
    """JSON-ready form; NaN and infinity, which JSON has not, become null."""
    if isinstance(value, (Path, Location)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value
