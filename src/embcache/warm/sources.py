"""Texts from files, pipes, BEIR folders and data sets, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from embcache.errors import ConfigError
from embcache.identity.home import user_path
from embcache.warm.batches import BATCH_ROWS, BadRow, Report, TextBatch
from embcache.warm.columnar import inspect_arrow, inspect_parquet, read_arrow, read_parquet
from embcache.warm.columns import Columns
from embcache.warm.delimited import Dialect, read_delimited
from embcache.warm.files import ARCHIVES, FORMATS, find_files
from embcache.warm.hub import estimate_dataset, read_dataset
from embcache.warm.json_files import read_json
from embcache.warm.opened import can_be_read_again, opened_text, reading

__all__ = [
    "BATCH_ROWS",
    "FORMATS",
    "BadRow",
    "Columns",
    "Dialect",
    "Report",
    "TextBatch",
    "beir_file",
    "estimate_dataset",
    "estimate_rows",
    "find_files",
    "read_beir",
    "read_dataset",
    "read_files",
]

_SAMPLE = 2**18  # characters
_READERS: dict[str, Callable[[Path, Columns, Report], Iterator[TextBatch]]] = {
    "parquet": read_parquet,
    "arrow": read_arrow,
    "jsonl": read_json,
}


def read_files(
    kind: str,
    files: Iterable[str | Path],
    columns: Columns,
    report: Report,
    dialect: Dialect | None = None,
) -> Iterator[TextBatch]:
    """Read the texts of files of one format.

    Args:
        kind: A key of `FORMATS`.
        files: The files, see `find_files`; also pipes, and `-`, standard input.
        columns: Where a row's text is, and what mteb makes of it.
        report: Is called with each row that is left out.
        dialect: How CSV and TSV files are written; None to find it out.

    Yields:
        Batches of at most `BATCH_ROWS` texts, numbered by line or row.

    Raises:
        ConfigError: A pattern matches no file, or a file lacks a column.
        InputError: A file cannot be read as this format, or is damaged.
    """
    for path in find_files(map(str, files), kind):
        with reading(path, kind):
            if kind in _READERS:
                yield from _READERS[kind](path, columns, report)
            else:
                yield from read_delimited(path, kind, columns, dialect or Dialect(), report)


def estimate_rows(
    kind: str, files: Iterable[str | Path], columns: Columns | None = None
) -> int | None:
    """Estimate how many rows files have, from what they say, or from their size and first lines.

    What is found out on the way, that a file is damaged or lacks a column, is raised: it costs less
    now than in the middle of a run.

    Args:
        kind: A key of `FORMATS`.
        files: The files, see `find_files`.
        columns: What parquet and Arrow files must have; None for anything.

    Returns:
        The number; None where it cannot be told: of pipes, Arrow and compressed files, and of JSON
        arrays.

    Raises:
        ConfigError: A pattern matches no file, or a parquet or Arrow file lacks a column.
        InputError: A file cannot be read as this format.
    """
    counts = [_estimate(kind, path, columns) for path in find_files(map(str, files), kind)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _estimate(kind: str, path: Path, columns: Columns | None) -> int | None:
    if not can_be_read_again(path):
        return None
    with reading(path, kind):
        if kind == "parquet":
            return inspect_parquet(path, columns)
        if kind == "arrow":
            inspect_arrow(path, columns)
            return None
        with opened_text(path) as file:
            head = file.read(_SAMPLE)
    if path.name.lower().endswith(ARCHIVES) or head.lstrip().startswith("["):
        return None
    lines = head.count("\n") or 1
    size = len(head.encode("utf-8", "surrogateescape"))
    return max(1, round(lines * path.stat().st_size / max(size, 1)))


def read_beir(folder: str, report: Report, parts: Iterable[str]) -> Iterator[TextBatch]:
    """Read a BEIR folder: `corpus.jsonl` as documents with titles, `queries.jsonl` as queries.

    Args:
        folder: Directory of the data set.
        report: Is called with each row that is left out.
        parts: "corpus", "queries" or both.

    Yields:
        Batches of at most `BATCH_ROWS` texts, with their prompt type.

    Raises:
        ConfigError: The folder lacks the file of a part, or a file lacks the column `text`.
        InputError: A file cannot be read as JSON lines.
    """
    for part, columns in (
        ("corpus", Columns("text", "title", title_is_optional=True)),
        ("queries", Columns("text", role="query")),
    ):
        if part not in parts:
            continue
        for batch in read_files("jsonl", [beir_file(folder, part)], columns, report):
            yield replace(batch, prompt_type=columns.role)


def beir_file(folder: str, part: str) -> Path:
    """Find `corpus.jsonl` or `queries.jsonl` of a BEIR folder, compressed or not.

    Args:
        folder: Directory of the data set.
        part: "corpus" or "queries".

    Raises:
        ConfigError: The folder has no such file.
    """
    for suffix in ("", *ARCHIVES):
        path = user_path(folder, "beir") / f"{part}.jsonl{suffix}"
        if path.is_file():
            return path
    raise ConfigError(f"BEIR folder {folder}: there is no {part}.jsonl in it.")
