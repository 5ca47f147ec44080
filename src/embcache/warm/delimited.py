"""CSV and TSV, with a header or without, in whatever dialect."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from embcache.errors import ConfigError, shown
from embcache.warm.batches import BadRow, Report, Row, TextBatch, batched, shown_name
from embcache.warm.columns import Columns
from embcache.warm.input_file import InputFile
from embcache.warm.opened import LONGEST, lines_of, opened_text

logger = logging.getLogger(__name__)

_DELIMITERS = ",;\t|"
_HEADER_LINES = 100

_NO_HEADER = " Those of a file without a header are numbers, from 1."

_Record = tuple[int, list[str]]
"""The line in which a record begins, and its fields."""


@dataclass(frozen=True)
class Dialect:
    """How a CSV or TSV file is written.

    Attributes:
        delimiter: Between fields; None for tabs in TSV, and in CSV for the one of comma, semicolon,
            tab and bar with which the first line has the columns.
        header: Whether the first line names the columns; without, columns are named by their
            number, from 1. None for yes, unless all columns that are wanted are numbers.
        quotes: Whether quotation marks enclose fields, and are doubled inside; else they are
            characters like others, and a line is a record. None for yes in CSV and no in TSV.

    Raises:
        ConfigError: The delimiter is no single character.
    """

    delimiter: str | None = None
    header: bool | None = None
    quotes: bool | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ConfigError(
                f"delimiter={self.delimiter!r} is no delimiter: give one character, and neither a "
                "quotation mark nor a line break."
            )


def read_delimited(
    file: InputFile, kind: str, columns: Columns, dialect: Dialect, report: Report
) -> Iterator[TextBatch]:
    """Read a CSV or TSV file.

    Python's csv module reads what has quotes, strictly. It is slower than those of pyarrow, pandas
    and DuckDB, which cannot say in which line a text is; and which take `"a"b`, or fewer fields
    than the header has, for a text that nobody wrote.

    Args:
        file: The file.
        kind: "csv" or "tsv".
        columns: Where a row's text is; names, or numbers from 1.
        dialect: How the file is written.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by the line in which a record begins.

    Raises:
        ConfigError: The file lacks a column, has it twice, or its dialect cannot be told.
    """
    quotes = kind == "csv" if dialect.quotes is None else dialect.quotes
    name = shown_name(file)
    # Lines as they are: translated ones would change what is between quotes.
    with opened_text(file, newline="" if quotes else "\n") as text:
        lines = lines_of(text, name)
        head = _first_lines(lines, quotes)
        delimiter = dialect.delimiter or ("\t" if kind == "tsv" else None)
        if delimiter is None:
            delimiter = _delimiter(head, quotes, columns, dialect, name)
        records = _records(chain(head, lines), delimiter, quotes, name, report)
        if not quotes and dialect.quotes is None:
            records = _doubted(records, name)
        rows = _rows(records, columns, dialect, name, report)
        yield from batched(rows, columns, str(file), "line", report)


def _first_lines(file: Iterator[str], quotes: bool) -> list[str]:
    """The lines of the first record: names of columns may be quoted, and have line breaks."""
    lines: list[str] = []
    for line in file:
        lines.append(line)
        whole = not quotes or sum(each.count('"') for each in lines) % 2 == 0
        if (line.strip() and whole) or len(lines) == _HEADER_LINES:
            break
    return lines


def _records(
    lines: Iterable[str], delimiter: str, quotes: bool, name: str, report: Report
) -> Iterator[_Record]:
    """The records of a file that are not empty."""
    if not quotes:
        for number, line in enumerate(lines, 1):
            line = line.removesuffix("\n").removesuffix("\r")
            if line:
                yield number, line.split(delimiter)
        return
    csv.field_size_limit(LONGEST)  # the module's default is less than a long document
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            end = reader.line_num
            gone = f"lines {start} to {end} are lost" if end > start else "the line is lost"
            report(BadRow(f"{name}, line {start}", f"broken CSV ({error}); {gone}"))
            continue
        if record is None:
            return
        if record:
            yield start, record


def _doubted(records: Iterator[_Record], name: str) -> Iterator[_Record]:
    """The same records; warns of the first field that looks as if its quotes were none of it."""
    for line, record in records:
        yield line, record
        if any(len(field) > 1 and field[0] == field[-1] == '"' for field in record):
            logger.warning(
                "%s, line %d: %s is in quotes, and they are read as part of the text. quotes=True "
                "reads them as those of CSV are; quotes=False says that this is right.",
                name,
                line,
                shown(next(field for field in record if field[:1] == '"')),
            )
            break
    yield from records


def _rows(
    records: Iterator[_Record], columns: Columns, dialect: Dialect, name: str, report: Report
) -> Iterator[Row]:
    first = next(records, None)
    if first is None:
        columns.check((), name)
        return
    header = first[1]
    width = len(header)
    if _has_header(header, columns, dialect, name):
        columns.check(header, name, _NO_HEADER)
        names = header
    else:
        names = [str(i) for i in range(1, width + 1)]
        columns.check(names, name)
        records = chain([first], records)
    text, title, instruction = (names.index(n) if n in names else None for n in columns.names)
    for line, record in records:
        if len(record) != width:
            # Half a text is none.
            reason = (
                f"{len(record)} fields, and the first line has {width}: is a delimiter or a line "
                "break in a field not quoted?"
            )
            report(BadRow(f"{name}, line {line}", reason))
            continue
        yield (
            line,
            (
                record[text or 0],
                None if title is None else record[title],
                None if instruction is None else record[instruction],
            ),
        )


def _has_header(first: list[str], columns: Columns, dialect: Dialect, name: str) -> bool:
    wanted = columns.required
    numbers = [column for column in wanted if column.isdecimal()]
    if dialect.header is False and len(numbers) < len(wanted):
        [named, *_] = [column for column in wanted if column not in numbers]
        raise ConfigError(
            f"{name} is read without a header, so there is no column {named!r}: give the number of "
            "the column, from 1, in Columns(text=..., title=...)."
        )
    if dialect.header is not None:
        return dialect.header
    if len(numbers) < len(wanted):
        return True
    if both := [column for column in numbers if column in first]:
        raise ConfigError(
            f"{name}: {both[0]!r} is a number, and the first line has a field {both[0]!r}. Say "
            "whether that line is one of names, header=True, or of values, header=False."
        )
    return False


def _delimiter(head: list[str], quotes: bool, columns: Columns, dialect: Dialect, name: str) -> str:
    """The delimiter with which the first line has the columns that are wanted."""
    fields: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        records = _records(head, delimiter, quotes, name, lambda row: None)
        fields[delimiter] = next(records, (1, []))[1]
    wanted = columns.required
    named = [each for each in fields if set(wanted) <= set(fields[each])]
    if named:
        return named[0]
    numbers = [int(column) for column in wanted if column.isdecimal()]
    if len(numbers) < len(wanted) or dialect.header:
        return max(fields, key=lambda each: len(fields[each]))  # for the message that it lacks one
    split = [each for each in fields if len(fields[each]) >= max(2, *numbers)]
    if len(split) > 1:
        raise ConfigError(
            f"{name}: the first line, {shown(''.join(head))}, can be split at "
            f"{' and at '.join(map(repr, split))}. Say at which: delimiter={split[0]!r}."
        )
    return split[0] if split else ","
