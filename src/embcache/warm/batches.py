"""What sources hand on: texts with their places, and rows that are left out."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embcache.engine.runs import runs, text_sizes
from embcache.warm.columns import Columns, Values

BATCH_ROWS = 8192
"""Texts of a batch, at most."""

BATCH_BYTES = 2**22
"""Bytes of those texts in memory, at most; a larger one is a batch by itself."""

STANDARD_INPUT = Path("-")


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
        name = shown_name(self.source)
        return f"{name}, {self.unit} {self.numbers[i]}" if len(self.numbers) else name

    def cut(self, where: slice) -> TextBatch:
        """Some of the texts, each with its number.

        Args:
            where: Positions in `texts`.
        """
        return replace(self, texts=self.texts[where], numbers=self.numbers[where])

    def pieces(self, most_texts: int, most_bytes: int) -> Iterator[TextBatch]:
        """The same texts in smaller batches.

        Args:
            most_texts: Texts of a batch at most.
            most_bytes: Bytes of its texts in memory at most; a larger text is a batch by itself.

        Yields:
            Batches, all texts in their order.
        """
        for run in runs(text_sizes(self.texts), most_bytes, most_texts):
            yield self.cut(run)

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

Row = tuple[int, Values]
"""The number of a row in its source, and what `Columns` wants of it."""


def shown_name(source: object) -> str:
    """What a source is called in messages.

    Args:
        source: Its name, or what has it as its text; `-` is standard input.
    """
    return "standard input" if str(source) == "-" else str(source)


def batched(
    rows: Iterable[Row], columns: Columns, source: str, unit: str, report: Report
) -> Iterator[TextBatch]:
    """Make texts of rows.

    Args:
        rows: The rows of one source.
        columns: What to make of a row.
        source: The source's name.
        unit: What the rows' numbers count.
        report: Is called with each row that has no text.

    Yields:
        Batches of at most `BATCH_ROWS` texts and `BATCH_BYTES`, in the order of the rows.
    """
    size = 0
    texts: list[str] = []
    numbers = array("q")
    for number, values in rows:
        try:
            texts.append(columns.make(values))
            numbers.append(number)
            size += sys.getsizeof(texts[-1])
        except ValueError as error:
            report(BadRow(f"{shown_name(source)}, {unit} {number}", str(error)))
        if len(texts) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield TextBatch(texts, source, numbers=numbers, unit=unit)
            texts, numbers, size = [], array("q"), 0
    if texts:
        yield TextBatch(texts, source, numbers=numbers, unit=unit)
