"""JSON lines, and JSON arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

from embcache.errors import InputError
from embcache.warm.batches import BadRow, Report, Row, TextBatch, batched, shown_name
from embcache.warm.columns import Columns, names_in
from embcache.warm.opened import opened_text

_LOOKED_AT = 1000
_CHUNK = 2**20
_LONGEST = 2**28  # characters of one element of an array; a string that nothing ends has more


def read_json(path: Path, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read JSON lines (one object a line), or an array of objects.

    Both are streamed. ijson, which streams arrays too, is no choice: its C library makes a question
    mark of a lone surrogate, and ends at the first byte that is no UTF-8.

    Args:
        path: The file.
        columns: Where a row's text is.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by line, or by position in the array, from 0.

    Raises:
        ConfigError: No row has a column that is needed.
        InputError: It is one object over several lines, or an array that is broken.
    """
    name = shown_name(path)
    with opened_text(path) as file:
        blank, first = _first_character(file)
        if first == "[":
            rows, unit = _objects(enumerate(_elements(file, name)), name, "row", report), "row"
        else:
            lines = chain([first + file.readline()], file)
            numbered = _parsed(enumerate(lines, blank + 1), name, report)
            rows, unit = _objects(numbered, name, "line", report), "line"
        yield from batched(checked(rows, columns, name), columns, str(path), unit, report)


def _first_character(file: IO[str]) -> tuple[int, str]:
    """How many lines are empty, and the first character that is no blank."""
    blank = 0
    while (character := file.read(1)).isspace():
        blank += character == "\n"
    return blank, character


def _parsed(
    lines: Iterable[tuple[int, str]], name: str, report: Report
) -> Iterator[tuple[int, Any]]:
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if first and _goes_on(line, error):
                raise InputError(
                    f"{name}: the JSON that begins in line {number} goes on in the next one. Give "
                    "one object a line, or an array of objects: `jq -c .` writes the first, and "
                    "`jq -c '.data[]'` of a list that is called data."
                ) from error
            report(BadRow(f"{name}, line {number}", f"broken JSON ({error})"))
        else:
            yield number, value
        first = False


def _goes_on(line: str, error: ValueError) -> bool:
    at = error.pos if isinstance(error, json.JSONDecodeError) else 0
    return line.lstrip().startswith("{") and not line[at:].strip()


def _objects(
    values: Iterable[tuple[int, Any]], name: str, unit: str, report: Report
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, value in values:
        if isinstance(value, Mapping):
            yield number, value
        else:
            what = f"a JSON {type(value).__name__}, not an object with columns"
            report(BadRow(f"{name}, {unit} {number}", what))


def checked(
    rows: Iterable[tuple[int, Mapping[str, Any]]], columns: Columns, name: str
) -> Iterator[Row]:
    """The rows' values; raises where none of the first thousand has a column that is needed.

    These are fewer than a batch, so no text has been handed on by then.
    """
    names: dict[str, None] = {}
    count = 0
    for count, (number, row) in enumerate(rows, 1):
        if count <= _LOOKED_AT:
            names.update(dict.fromkeys(names_in(row, columns.required)))
        yield number, columns.read(row)
        if count == _LOOKED_AT:
            columns.check(names, name)
    if 0 < count < _LOOKED_AT:
        columns.check(names, name)


def _elements(file: IO[str], name: str) -> Iterator[Any]:
    """The elements of an array whose opening bracket was read."""
    decoder = json.JSONDecoder()
    buffer, number = "", 0
    while True:
        buffer = _filled(buffer, file)
        if number == 0 and buffer.startswith("]"):
            buffer = buffer[1:]
            break
        value, end, buffer = _element(decoder, buffer, file, f"{name}, row {number}")
        yield value
        number += 1
        buffer = _filled(buffer[end:], file)
        separator, buffer = buffer[:1], buffer[1:]
        if separator == "]":
            break
        if separator != ",":
            found = f"{separator!r} instead of a comma or ]" if separator else "the file ends"
            raise InputError(f"{name}: broken JSON array ({found} after row {number - 1}).")
    if rest := _filled(buffer, file):
        raise InputError(f"{name}: behind the end of the JSON array, there is {rest[:20]!r}.")


def _filled(buffer: str, file: IO[str]) -> str:
    """The buffer without blanks in front, with more of the file if else nothing were left."""
    buffer = buffer.lstrip()
    while not buffer and (more := file.read(_CHUNK)):
        buffer = more.lstrip()
    return buffer


def _element(
    decoder: json.JSONDecoder, buffer: str, file: IO[str], place: str
) -> tuple[Any, int, str]:
    """The element that a buffer begins with, its end, and the buffer with what had to be read."""
    while True:
        try:
            value, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated") or error.pos > len(buffer) - 16
            if unfinished and len(buffer) < _LONGEST and (more := file.read(len(buffer) + _CHUNK)):
                buffer += more
                continue
            raise InputError(
                f"{place}: broken JSON ({error.msg}: {buffer[error.pos : error.pos + 20]!r}), and "
                "where the next row begins cannot be told. One object a line has no such trouble."
            ) from error
        # A number at the very end may have further digits.
        if end == len(buffer) and (more := file.read(_CHUNK)):
            buffer += more
            continue
        return value, end, buffer
