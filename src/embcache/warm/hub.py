"""Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embcache.errors import ConfigError, InputError
from embcache.warm.batches import Report, TextBatch, batched
from embcache.warm.columns import Columns
from embcache.warm.json_files import checked


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
        Batches of at most `BATCH_ROWS` texts, numbered by row, from 0.

    Raises:
        ConfigError: The data set cannot be opened, or lacks a column.
        InputError: One of its files is broken, or has other types than the first one.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # of many kinds, from many libraries; all mean the same here
        raise ConfigError(
            f"Data set {name} cannot be opened (configuration {config}, split {split}): "
            f"{type(error).__name__}: {error}"
        ) from error
    wanted = [column for column in columns.names if column is not None]
    if set(wanted) <= set(rows.column_names or ()):
        rows = rows.select_columns(wanted)  # images need not be decoded
    values = checked(_numbered(rows, name, split), columns, name)
    yield from batched(values, columns, name, "row", report)


def _numbered(rows: Any, name: str, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    stream = iter(rows)
    while True:
        try:
            row = next(stream, None)
        except Exception as error:  # the same
            raise InputError(
                f"Data set {name}, split {split}, cannot be read on from row {number}: "
                f"{type(error).__name__}: {error}. A file of it is damaged, or has a column of "
                "another type than the first file."
            ) from error
        if row is None:
            return
        yield number, row
        number += 1


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
