"""Plain text: a text on each line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from embcache.warm.batches import Report, Row, TextBatch, batched, shown_name
from embcache.warm.columns import Columns
from embcache.warm.input_file import InputFile
from embcache.warm.opened import lines_of, opened_text

COLUMN = "text"
"""The one column that plain text has."""


def read_lines(file: InputFile, columns: Columns, report: Report) -> Iterator[TextBatch]:
    """Read a file of texts, one a line. Lines without anything but blanks are no rows.

    Args:
        file: The file.
        columns: What to make of a text; the only column that there is is `COLUMN`.
        report: Is called with each row that is left out.

    Yields:
        Batches of texts, numbered by line.

    Raises:
        ConfigError: Another column is wanted.
    """
    columns.check([COLUMN], shown_name(file), " A file of plain text has no others.")
    # Only line feeds end lines: a text may have other breaks in it, and editors count as `wc`.
    with opened_text(file, newline="\n") as text:
        lines = lines_of(text, shown_name(file))
        yield from batched(_rows(lines), columns, str(file), "line", report)


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text and not text.isspace():
            yield number, (text, None, None)
