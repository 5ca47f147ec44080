"""JSON lines, and JSON arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import IO, Any

from embcache.errors import InputError
from embcache.warm.batches import BadRow, Report, Row, TextBatch, batched, shown_name
from embcache.warm.columns import Columns, names_in
from embcache.warm.input_file import InputFile
from embcache.warm.opened import LONGEST, lines_of, opened_text

_LOOKED_AT = 1000
_CHUNK = 2**20
_MOST_BLANKS = 2**20  # before the first value
_TOKEN = 16  # characters, at most, of what is wrong only because it is cut off
_NO_BLANK = re.compile(r"\S")
_DECODER = json.JSONDecoder()

Object = tuple[int, Mapping[str, Any]]
"""The number of a row in its source, and its values by column."""


def read_json(file: InputFile, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read JSON lines (one object a line), or an array of objects.

    Both are streamed. ijson, which streams arrays too, is no choice: its C library makes a question
    mark of a lone surrogate, and ends at the first byte that is no UTF-8.

    Args:
        file: The file.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by line, or by position in the array, from 0.

    Raises:
        ConfigError: No row has a column that is needed.
        InputError: It is one object over several lines, or an array that is broken.
    """
    name = shown_name(file)
    with opened_text(file) as text:
        blank, first = _first_character(text, name)
        if first == "[":
            objects, unit = _objects(_elements(text, name), name, report), "row"
        else:
            lines = lines_of(text, name)
            lines = chain([first + next(lines, "")], lines)
            objects, unit = _lines(enumerate(lines, blank + 1), name, report), "line"
        yield from batched(checked(objects, columns, name), columns, str(file), unit, report)


def _first_character(file: IO[str], name: str) -> tuple[int, str]:
    """How many lines are empty, and the first character that is no blank."""
    blank = 0
    for _ in range(_MOST_BLANKS):
        if not (character := file.read(1)).isspace():
            return blank, character
        blank += character == "\n"
    raise InputError(f"{name} begins with more than {_MOST_BLANKS:,} blanks: that is no JSON.")


def _lines(lines: Iterable[tuple[int, str]], name: str, report: Report) -> Iterator[Object]:
    """The objects of JSON lines."""
    first = True
    for number, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.strip():
                continue
            if first and _goes_on(line, error):
                raise InputError(
                    f"{name}: the JSON that begins in line {number} goes on in the next one. Give "
                    "one object a line, or an array of objects: `jq -c .` writes the first, and "
                    "`jq -c '.data[]'` of a list that is called data."
                ) from error
            report(BadRow(f"{name}, line {number}", f"broken JSON ({error})"))
        else:
            if isinstance(value, dict):
                yield number, value
            else:
                report(BadRow(f"{name}, line {number}", _no_object(value)))
        first = False


def _goes_on(line: str, error: Exception) -> bool:
    """Whether a line is broken only in that it ends; a string cannot go on in the next one."""
    if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Invalid control"):
        return False
    return line.lstrip().startswith("{") and not line[error.pos :].strip()


def _objects(elements: Iterable[Any], name: str, report: Report) -> Iterator[Object]:
    """Those elements of an array that are objects."""
    for number, value in enumerate(elements):
        if isinstance(value, dict):
            yield number, value
        else:
            report(BadRow(f"{name}, row {number}", _no_object(value)))


def _no_object(value: Any) -> str:
    return f"a JSON {type(value).__name__}, not an object with columns"


def checked(rows: Iterable[Object], columns: Columns, name: str) -> Iterator[Row]:
    """The rows' values; raises where none of the first thousand has a column that is needed.

    These are fewer than a batch, so no text has been handed on by then.

    Args:
        rows: Numbered rows of a source.
        columns: What is wanted of them.
        name: The source's name.

    Yields:
        Numbered values, as `Columns.read` returns them.

    Raises:
        ConfigError: None of the first rows has a column that a source must have.
    """
    rows = iter(rows)
    names: dict[str, None] = {}
    for number, row in islice(rows, _LOOKED_AT):
        names.update(dict.fromkeys(names_in(row, columns.required)))
        yield number, columns.read(row)
    if names:
        columns.check(names, name)
    for number, row in rows:
        yield number, columns.read(row)


def _elements(file: IO[str], name: str) -> Iterator[Any]:
    """The elements of an array whose opening bracket was read."""
    ahead = _Ahead(file)
    number = 0
    while not (number == 0 and ahead.skip_blanks() == "]"):
        yield ahead.element(f"{name}, row {number}")
        separator = ahead.skip_blanks()
        if separator == "]":
            break
        if separator != ",":
            found = f"{separator!r} instead of a comma or ]" if separator else "the file ends"
            raise InputError(f"{name}: broken JSON array ({found} after row {number}).")
        ahead.at += 1
        ahead.skip_blanks()
        number += 1
    ahead.at += 1
    if rest := ahead.skip_blanks():
        raise InputError(f"{name}: there is more behind the end of the JSON array: {rest!r} ...")


class _Ahead:
    """A part of a file in memory, and a position in it.

    Args:
        file: The file.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._buffer = ""
        self.at = 0

    def skip_blanks(self) -> str:
        """Go to the next character that is no blank; it is returned, or nothing at the end."""
        while True:
            if match := _NO_BLANK.search(self._buffer, self.at):
                self.at = match.start()
                return match[0]
            self.at = len(self._buffer)
            if not self._read_on():
                return ""

    def element(self, place: str) -> Any:
        """Go behind the element that begins here, and return it.

        Args:
            place: What it is called in messages.

        Raises:
            InputError: It is broken.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self.at)
            except json.JSONDecodeError as error:
                unfinished = (
                    error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - _TOKEN
                )
                if unfinished and len(self._buffer) < LONGEST and self._read_on():
                    continue
                found = self._buffer[error.pos : error.pos + _TOKEN]
                raise InputError(
                    f"{place}: broken JSON ({error.msg}: {found!r}), and where the next row begins "
                    "cannot be told. One object a line has no such trouble."
                ) from error
            except RecursionError as error:
                raise InputError(f"{place}: JSON that is nested too deeply.") from error
            except ValueError as error:  # a number of thousands of digits
                raise InputError(f"{place}: JSON that cannot be read: {error}.") from error
            # A number at the very end may have further digits.
            if end == len(self._buffer) and self._read_on():
                continue
            self.at = end
            return value

    def _read_on(self) -> bool:
        """Have as much again in memory; whether there was more."""
        kept = self._buffer[self.at :]
        more = self._file.read(max(_CHUNK, len(kept)))
        self._buffer, self.at = kept + more, 0
        return bool(more)
