"""Reading a file's texts in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embcache.warm import BadRow, Columns
from embcache.warm.sources import read_files


def refuse(row: BadRow) -> None:
    raise AssertionError(row)


def read(
    kind: str, *patterns: Any, columns: Columns | None = None, report: Any = refuse, **kwargs: Any
) -> list[str]:
    """All texts of files; no row may be bad unless `report` takes it."""
    stream = read_files(kind, list(patterns), columns or Columns(), report, **kwargs)
    return [text for batch in stream for text in batch.texts]


def places(
    kind: str, path: Path, columns: Columns | None = None, **kwargs: Any
) -> tuple[dict[str, str], list[str]]:
    """Each text by its place in a file, and what is left out; the file's name is left off."""
    bad: list[BadRow] = []
    stream = read_files(kind, [path], columns or Columns(), bad.append, **kwargs)
    name = f"{path}, "
    found = {
        batch.place(i).removeprefix(name): text
        for batch in stream
        for i, text in enumerate(batch.texts)
    }
    return found, [str(row).removeprefix(name) for row in bad]
