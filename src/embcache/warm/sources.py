"""Texts from files, pipes, BEIR folders and data sets, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from embcache.errors import ConfigError
from embcache.identity.home import user_path
from embcache.store.location import is_url
from embcache.warm.arrow_files import inspect_arrow
from embcache.warm.batches import BATCH_ROWS, BadRow, Report, TextBatch
from embcache.warm.columns import Columns
from embcache.warm.delimited import Dialect
from embcache.warm.files import find_files
from embcache.warm.formats import ARCHIVES, FORMATS
from embcache.warm.hub import estimate_dataset, read_dataset
from embcache.warm.input_file import InputFile, LocalFile
from embcache.warm.lance_tables import inspect_lance
from embcache.warm.opened import opened_text, reading
from embcache.warm.parquet_files import inspect_parquet
from embcache.warm.parts import Part, parts, side_by_side
from embcache.warm.remote_listing import find_one

__all__ = [
    "BATCH_ROWS",
    "FORMATS",
    "BadRow",
    "Columns",
    "Dialect",
    "Part",
    "Report",
    "TextBatch",
    "beir_parts",
    "estimate_dataset",
    "estimate_part",
    "estimate_parts",
    "estimate_rows",
    "find_files",
    "parts",
    "read_beir",
    "read_dataset",
    "read_files",
]

_SAMPLE = 2**18  # characters
_BEIR = {
    "corpus": Columns("text", "title", title_is_optional=True),
    "queries": Columns("text", role="query"),
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
        files: The files, see `find_files`; also pipes, `-`, standard input, and URLs.
        columns: Where a row's text is, and what mteb makes of it.
        report: Is called with each row that is left out.
        dialect: How CSV and TSV files are written; None to find it out.

    Yields:
        Batches of at most `BATCH_ROWS` texts, numbered by line or row.

    Raises:
        ConfigError: A pattern matches no file, or a file lacks a column.
        InputError: A file cannot be read as this format, or is damaged; a store refuses, or does
            not answer.
    """
    for part in parts(kind, files, columns, dialect):
        yield from part.read(report)


def estimate_rows(
    kind: str, files: Iterable[str | Path], columns: Columns | None = None
) -> int | None:
    """Estimate how many rows files have, see `estimate_part`.

    Args:
        kind: A key of `FORMATS`.
        files: The files, see `find_files`.
        columns: What parquet and Arrow files and Lance tables must have; None for anything.

    Returns:
        The number; None where it cannot be told of one of them.

    Raises:
        ConfigError: A pattern matches no file, or a file lacks a column.
        InputError: A file cannot be read as this format.
    """
    found = parts(kind, files, columns or Columns())
    counts = [estimate_part(part, check=columns is not None) for part in found]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def estimate_parts(found: Iterable[Part]) -> list[int | None]:
    """Estimate how many rows parts have, several at once, see `estimate_part`.

    Args:
        found: The parts.

    Returns:
        A number for each; None where it cannot be told.

    Raises:
        ConfigError: A parquet or Arrow file or a Lance table lacks a column.
        InputError: A file cannot be read as its format.
    """
    return side_by_side(estimate_part, found)


def estimate_part(part: Part, *, check: bool = True) -> int | None:
    """Estimate how many rows a part has, from what it says, or from its size and first lines.

    What is found out on the way, that a file is damaged or lacks a column, is raised: it costs less
    now than in the middle of a run.

    Args:
        part: The part.
        check: Whether parquet and Arrow files and Lance tables must have the part's columns.

    Returns:
        The number; None where it cannot be told: of pipes, Arrow and compressed files, and of JSON
        arrays.

    Raises:
        ConfigError: A parquet or Arrow file or a Lance table lacks a column.
        InputError: The file cannot be read as its format.
    """
    file, columns = part.path, part.columns if check else None
    if not part.can_be_shipped:
        return None
    with reading(file, part.kind):
        if part.kind == "parquet":
            return inspect_parquet(file, columns, part.pieces)
        if part.kind == "lance":
            return inspect_lance(file, columns, part.pieces, part.version)
        if part.kind == "arrow":
            inspect_arrow(file, columns)
            return None
        with opened_text(file, at_once=_SAMPLE) as text:
            head = text.read(_SAMPLE)
    is_array = part.kind == "jsonl" and head.lstrip().startswith("[")
    if file.name.lower().endswith(ARCHIVES) or is_array:
        return None
    lines = head.count("\n") or 1
    size = len(head.encode("utf-8", "surrogateescape"))
    return max(1, round(lines * file.size / max(size, 1)))


def read_beir(folder: str, report: Report, wanted: Iterable[str]) -> Iterator[TextBatch]:
    """Read a BEIR folder: `corpus.jsonl` as documents with titles, `queries.jsonl` as queries.

    Args:
        folder: Directory or URL of the data set.
        report: Is called with each row that is left out.
        wanted: "corpus", "queries" or both.

    Yields:
        Batches of at most `BATCH_ROWS` texts, with their prompt type.

    Raises:
        ConfigError: The folder lacks the file of a part, or a file lacks the column `text`.
        InputError: A file cannot be read as JSON lines.
    """
    for part in beir_parts(folder, wanted):
        yield from part.read(report)


def beir_parts(folder: str, wanted: Iterable[str]) -> list[Part]:
    """The files of a BEIR folder, compressed or not, and how they are read.

    Args:
        folder: Directory or URL of the data set.
        wanted: "corpus", "queries" or both.

    Raises:
        ConfigError: The folder lacks one of them.
        InputError: A store refuses, or does not answer.
    """
    return [
        Part("jsonl", _beir_file(folder, name), columns, prompt_type=columns.role)
        for name, columns in _BEIR.items()
        if name in wanted
    ]


def _beir_file(folder: str, name: str) -> InputFile:
    for suffix in ("", *ARCHIVES):
        if is_url(folder):
            found = find_one(f"{folder.rstrip('/')}/{name}.jsonl{suffix}")
            if found is not None:
                return found
        elif (path := user_path(folder, "beir") / f"{name}.jsonl{suffix}").is_file():
            return LocalFile.at(path)
    raise ConfigError(f"BEIR folder {folder}: there is no {name}.jsonl in it.")
