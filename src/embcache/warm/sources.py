"""Texts from files, a pipe, BEIR folders and Hugging Face datasets, streamed batch by batch."""

from __future__ import annotations

import csv
import io
import json
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from embcache.errors import ConfigError, InputError, shown
from embcache.identity.home import user_path

BATCH_ROWS = 8192
_LOOKED_AT = 1000

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.bz2", ".jsonl.zst"),
    "csv": (".csv", ".csv.gz"),
}
"""File formats, and the endings by which their files are found in a directory."""


@dataclass(frozen=True)
class TextBatch:
    """Texts that get the same prompt.

    Attributes:
        texts: The texts, without the prompt.
        source: Name of the file, data set or task, which is noted beside new rows.
        prompt: Put in front of each text; None where the encoder's prompts decide.
        prompt_type: "query", "document" or None, by which the encoder chooses its prompt; it is
            noted beside new rows.
        numbers: Where each text is in its source: lines from 1, as editors count them, and rows
            from 0, as data frames count them. Empty where that is not known.
        unit: What `numbers` count: "line" or "row", say.
    """

    texts: list[str]
    source: str
    prompt: str | None = None
    prompt_type: str | None = None
    numbers: Sequence[int] = ()
    unit: str = "row"

    def place(self, i: int) -> str:
        """Where the i-th text came from, for a message: "x.jsonl, line 50001".

        Args:
            i: Position of the text in `texts`.

        Returns:
            The source's name, and the text's number in it where that is known.
        """
        name = "standard input" if self.source == "-" else self.source
        return f"{name}, {self.unit} {self.numbers[i]}" if len(self.numbers) else name

    def cut(self, where: slice) -> TextBatch:
        """Some of the texts, each with its number.

        Args:
            where: Positions in `texts`.
        """
        return replace(self, texts=self.texts[where], numbers=self.numbers[where])

    def joined(self, other: TextBatch) -> TextBatch | None:
        """Both batches' texts as one batch, this one's first.

        Args:
            other: Another batch.

        Returns:
            The batch; None where both differ in more than their texts.
        """
        alike = replace(self, texts=[], numbers=()) == replace(other, texts=[], numbers=())
        if not alike or bool(len(self.numbers)) != bool(len(other.numbers)):
            return None
        # An array, since a list of ints takes four times the memory.
        numbers = array("q", [*self.numbers, *other.numbers]) if len(self.numbers) else ()
        return replace(self, texts=[*self.texts, *other.texts], numbers=numbers)


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, because it has no text.

    Attributes:
        place: File and line, or data set and row.
        reason: What is wrong with the row.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Report = Callable[[BadRow], None]
"""Is called with every row that is left out; it may raise, to stop reading."""

Row = tuple[str, Mapping[str, Any]]
"""The place of a row, as of `BadRow`, and its values by column."""


@dataclass(frozen=True)
class Columns:
    """Where a row's text is.

    Attributes:
        text: Column of the text.
        title: Column of a title that is put in front of the text, as mteb does; None for none.
        title_is_optional: Whether a source may have no column of titles at all.
    """

    text: str = "text"
    title: str | None = None
    title_is_optional: bool = False

    def join(self, row: Mapping[str, Any]) -> str:
        """The text that mteb would embed.

        Args:
            row: Values by column.

        Returns:
            Title, space and text, stripped; without a column of titles, the text as it is.

        Raises:
            ValueError: The row has no text, or the text is no string or has no UTF-8 form.
        """
        if self.text not in row:
            names = ", ".join(map(repr, row)) or "none"
            raise ValueError(f"no column {self.text!r} (columns: {names})")
        text = row[self.text]
        if not isinstance(text, str):
            what = "null" if text is None else f"{type(text).__name__} {shown(text)}"
            raise ValueError(f"column {self.text!r} is {what}, not a string")
        title = None if self.title is None else row.get(self.title)
        joined = f"{title} {text}".strip() if title else text.strip() if self.title else text
        try:
            joined.encode()  # what is no UTF-8 in a file arrives here as lone surrogates
        except UnicodeEncodeError as error:
            found = f"{joined[error.start]!r} at character {error.start}"
            raise ValueError(f"column {self.text!r} is no UTF-8 text ({found})") from error
        return joined

    def check(self, names: Collection[str], where: str) -> None:
        """Refuse a source that lacks a column.

        Args:
            names: The columns that the source has.
            where: The source's name, for the message.

        Raises:
            ConfigError: The source lacks the column of texts, or that of titles if it must have
                one.
        """
        wanted = [self.text, *([] if self.title_is_optional or not self.title else [self.title])]
        for name in wanted:
            if name not in names:
                listed = f"only {', '.join(map(repr, names))}" if names else "and no others: empty?"
                raise ConfigError(
                    f"{where} has no column {name!r}, {listed}. Name those of the texts and "
                    "titles in Columns(text=..., title=...)."
                )


def find_files(patterns: Iterable[str], kind: str) -> list[Path]:
    """Find files by globs, directories and names.

    Args:
        patterns: Names of files; globs; or directories, of which all files of the format are
            taken, also of those in folders below.
        kind: A key of `FORMATS`.

    Returns:
        The files, sorted within each pattern.

    Raises:
        ConfigError: A pattern matches no file.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = user_path(pattern, kind)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.name.endswith(FORMATS[kind]))
        elif has_magic(pattern):
            files = sorted(Path(name) for name in glob(str(path), recursive=True))
        else:
            files = [path] if path.is_file() else []
        if not files:
            raise ConfigError(
                f"{pattern}: there is no such {kind} file (working directory: {Path.cwd()}), or no "
                f"{' or '.join(FORMATS[kind])} in that directory."
            )
        found += files
    return found


def read_files(
    kind: str, patterns: Iterable[str], columns: Columns, report: Report
) -> Iterator[TextBatch]:
    """Read the texts of files of one format.

    Args:
        kind: A key of `FORMATS`.
        patterns: The files, see `find_files`; `-` alone, with "jsonl", is standard input.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of at most `BATCH_ROWS` texts.

    Raises:
        ConfigError: A pattern matches no file, or a file lacks a column.
        InputError: A file cannot be read as this format.
    """
    patterns = list(patterns)
    if kind == "jsonl" and patterns == ["-"]:
        lines = _json_lines(_standard_input(), "standard input", report)
        for texts in _joined(_checked(lines, columns, "standard input"), columns, report):
            yield TextBatch(texts, "-")
        return
    for path in find_files(patterns, kind):
        try:
            for texts in _READERS[kind](path, columns, report):
                yield TextBatch(texts, str(path))
        except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{path} cannot be read as {kind}: {type(error).__name__}: {error}"
            ) from error


def estimate_rows(kind: str, patterns: Iterable[str]) -> int | None:
    """Estimate how many rows files have, from what they say, or from their size and first lines.

    Args:
        kind: A key of `FORMATS`.
        patterns: The files, see `find_files`; `-` alone is standard input.

    Returns:
        The number; None where it cannot be told: of standard input, Arrow and compressed files.

    Raises:
        ConfigError: A pattern matches no file.
    """
    patterns = list(patterns)
    if patterns == ["-"]:
        return None
    counts = [_estimate(kind, path) for path in find_files(patterns, kind)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _estimate(kind: str, path: Path) -> int | None:
    if kind == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    if kind == "arrow" or path.suffix in (".gz", ".bz2", ".zst"):
        return None
    with path.open("rb") as file:
        head = file.read(2**18)
    lines = head.count(b"\n") or 1
    return max(1, round(lines * path.stat().st_size / max(len(head), 1)))


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
    for part, columns, prompt_type in (
        ("corpus", Columns("text", "title", title_is_optional=True), "document"),
        ("queries", Columns("text"), "query"),
    ):
        if part not in parts:
            continue
        path = beir_file(folder, part)
        for batch in read_files("jsonl", [str(path)], columns, report):
            yield replace(batch, prompt_type=prompt_type)


def beir_file(folder: str, part: str) -> Path:
    """Find `corpus.jsonl` or `queries.jsonl` of a BEIR folder, compressed or not.

    Args:
        folder: Directory of the data set.
        part: "corpus" or "queries".

    Raises:
        ConfigError: The folder has no such file.
    """
    for suffix in ("", ".gz", ".bz2", ".zst"):
        path = user_path(folder, "beir") / f"{part}.jsonl{suffix}"
        if path.is_file():
            return path
    raise ConfigError(f"BEIR folder {folder}: there is no {part}.jsonl in it.")


def read_dataset(
    name: str, config: str | None, split: str, columns: Columns, report: Report
) -> Iterator[TextBatch]:
    """Read a Hugging Face data set, streamed: nothing is downloaded ahead.

    Args:
        name: Name on the hub, or a directory.
        config: Configuration of the data set; None for the default one.
        split: Split of the data set.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of at most `BATCH_ROWS` texts.

    Raises:
        ConfigError: The data set cannot be opened, or lacks a column.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # of many kinds, from many libraries; all mean the same here
        raise ConfigError(
            f"Data set {name} cannot be opened (configuration {config}, split {split}): "
            f"{type(error).__name__}: {error}"
        ) from error
    numbered = ((f"{name}, row {number}", row) for number, row in enumerate(rows))
    for texts in _joined(_checked(numbered, columns, name), columns, report):
        yield TextBatch(texts, name)


def estimate_dataset(name: str, config: str | None, split: str) -> int | None:
    """How many rows a Hugging Face data set has.

    Args:
        name: Name on the hub, or a directory.
        config: Configuration of the data set; None for the default one.
        split: Split of the data set.

    Returns:
        The number that its description states; None if it states none or cannot be read.
    """
    from datasets import load_dataset_builder

    try:
        splits = load_dataset_builder(name, config).info.splits
    except Exception:  # reading it says what is wrong; this is only for the time left
        return None
    found = None if splits is None else splits.get(split)
    return None if found is None else int(found.num_examples)


def _joined(rows: Iterable[Row], columns: Columns, report: Report) -> Iterator[list[str]]:
    texts: list[str] = []
    for place, row in rows:
        try:
            texts.append(columns.join(row))
        except ValueError as error:
            report(BadRow(place, str(error)))
        if len(texts) >= BATCH_ROWS:
            yield texts
            texts = []
    if texts:
        yield texts


def _checked(rows: Iterable[Row], columns: Columns, where: str) -> Iterator[Row]:
    """The same rows; raises where none of the first thousand has a column that is needed.

    These are fewer than a batch, so no text has been handed on by then.
    """
    names: dict[str, None] = {}
    count = 0
    for count, (place, row) in enumerate(rows, 1):
        if count <= _LOOKED_AT:
            names.update(dict.fromkeys(row))
        yield place, row
        if count == _LOOKED_AT:
            columns.check(names, where)
    if 0 < count < _LOOKED_AT:
        columns.check(names, where)


def _json_lines(lines: Iterable[str], name: str, report: Report) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        place = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            report(BadRow(place, f"broken JSON ({error})"))
            continue
        if isinstance(row, Mapping):
            yield place, row
        else:
            report(BadRow(place, f"a JSON {type(row).__name__}, not an object with columns"))


def _open_text(path: Path) -> IO[str]:
    """Open a file as text; it may be compressed, which its name says.

    What is no UTF-8 becomes lone surrogates, so that one row is left out and not the file.
    """
    return _as_text(pa.input_stream(str(path), compression="detect"))


def _standard_input() -> IO[str]:
    buffer = getattr(sys.stdin, "buffer", None)  # a test's stand-in may have none
    return sys.stdin if buffer is None else _as_text(buffer)


def _as_text(raw: Any) -> IO[str]:
    # Excel and Windows put a byte order mark in front.
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")


def _read_jsonl(path: Path, columns: Columns, report: Report) -> Iterator[list[str]]:
    with _open_text(path) as file:
        rows = _checked(_json_lines(file, str(path), report), columns, str(path))
        yield from _joined(rows, columns, report)


def _read_csv(path: Path, columns: Columns, report: Report) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB, is less than a long document
    with _open_text(path) as file:
        reader = csv.DictReader(file)
        columns.check(reader.fieldnames or (), str(path))
        # A line that is too long has its rest under the key None; one that is too short, None.
        rows = ((f"{path}, line {reader.line_num}", row) for row in reader)
        yield from _joined(rows, columns, report)


def _read_parquet(path: Path, columns: Columns, report: Report) -> Iterator[list[str]]:
    import pyarrow.parquet as pq

    # A small buffer instead of whole column chunks: memory shall not grow with the file.
    with pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False) as file:
        names = _wanted(file.schema_arrow.names, columns, path)
        yield from _arrow_texts(file.iter_batches(BATCH_ROWS, columns=names), columns, path, report)


def _read_arrow(path: Path, columns: Columns, report: Report) -> Iterator[list[str]]:
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            schema = file.schema
        except pa.ArrowInvalid:  # the stream format, which datasets writes
            source.seek(0)
            batches = pa.ipc.open_stream(source)
            schema = batches.schema
        names = _wanted(schema.names, columns, path)
        pieces = (
            batch.select(names).slice(at, BATCH_ROWS)
            for batch in batches
            for at in range(0, batch.num_rows, BATCH_ROWS)
        )
        yield from _arrow_texts(pieces, columns, path, report)


def _wanted(names: list[str], columns: Columns, path: Path) -> list[str]:
    columns.check(names, str(path))
    return [name for name in (columns.text, columns.title) if name is not None]


def _arrow_texts(
    batches: Iterable[pa.RecordBatch], columns: Columns, path: Path, report: Report
) -> Iterator[list[str]]:
    start = 0
    for batch in batches:
        column = batch.column(columns.text)
        if columns.title is None and not column.null_count and _is_string(column.type):
            yield column.to_pylist()  # the usual case, and much faster
        else:
            numbered = enumerate(batch.to_pylist(), start)
            yield from _joined(((f"{path}, row {n}", row) for n, row in numbered), columns, report)
        start += batch.num_rows


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_READERS: dict[str, Callable[[Path, Columns, Report], Iterator[list[str]]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
}
