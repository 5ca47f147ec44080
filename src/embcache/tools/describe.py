"""What a space holds, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embcache.store import Layout, Location, Space
from embcache.store.schema import SpaceMetadata, format_version

_SCAN_ROWS = 65_536
_MOST_DISTINCT = 1000  # values counted a column; a prompt for each text must not fill the memory
_FIRST_BIN = 8


@dataclass(frozen=True)
class ValueCount:
    """How many rows have a value; None is null."""

    value: str | None
    count: int


@dataclass(frozen=True)
class TokenBin:
    """How many texts have from `first` to `last` tokens."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class SpaceDescription:
    """What `describe` found.

    Attributes:
        location: The space's folder.
        metadata: What the space says about itself.
        format_version: Of its table.
        value: `vector` or `score`.
        dim: Components of a vector; 1 for scores.
        columns: Name and Arrow type of each column.
        rows: Rows of the table.
        fragments: Lance's fragments that they lie in.
        size_bytes: Everything in the folder, old versions included.
        tokens: Token-length histogram, bins doubling in width; none where no row has n_tokens.
        tokens_unknown: Rows whose n_tokens is null.
        counts: For each string column of few values (prompts, prompt types, tasks) its values,
            the most frequent first.
        uncounted: For such a column, rows of further values than the 1,000 seen first.
        first_written: created_at of the oldest row; None where there is none.
        last_written: created_at of the newest row.
    """

    location: Location
    metadata: SpaceMetadata
    format_version: int
    value: str
    dim: int
    columns: dict[str, str]
    rows: int
    fragments: int
    size_bytes: int
    tokens: list[TokenBin]
    tokens_unknown: int
    counts: dict[str, list[ValueCount]]
    uncounted: dict[str, int]
    first_written: datetime | None
    last_written: datetime | None


def describe(space: Space) -> SpaceDescription:
    """Count what a space holds, in one scan of its small columns.

    Raises:
        ConfigError: There is no table.
        CacheError: Lance cannot read it.
    """
    reader = space.open()
    schema = reader.schema
    counted = [name for name in _countable(reader.layout) if name in schema.names]
    counters: dict[str, Counter[str | None]] = {name: Counter() for name in counted}
    uncounted = dict.fromkeys(counted, 0)
    tokens: Counter[int | None] = Counter()
    moments: list[datetime] = []
    for batch in reader.scan([*counted, "n_tokens", "created_at"], _SCAN_ROWS):
        for name in counted:
            uncounted[name] += _count(counters[name], batch.column(name))
        _count(tokens, batch.column("n_tokens"), limit=None)
        bounds = pc.min_max(batch.column("created_at"))
        found = (_moment(bounds[name]) for name in ("min", "max"))
        moments = [m for m in (*moments, *found) if m is not None]
        moments = [min(moments), max(moments)] if moments else []
    return SpaceDescription(
        location=space.location,
        metadata=reader.metadata,
        format_version=format_version(schema),
        value=reader.layout.value,
        dim=reader.dim,
        columns={field.name: str(field.type) for field in schema},
        rows=len(reader),
        fragments=len(reader.fragments),
        size_bytes=space.location.size(),
        tokens=_histogram(tokens),
        tokens_unknown=tokens[None],
        counts={
            name: [ValueCount(*pair) for pair in counters[name].most_common()] for name in counted
        },
        uncounted=uncounted,
        first_written=moments[0] if moments else None,
        last_written=moments[-1] if moments else None,
    )


def _moment(value: pa.TimestampScalar) -> datetime | None:
    """A time; None for null, and for what is beyond Python's years, which nobody wrote."""
    try:
        moment: datetime | None = value.as_py()
    except (OverflowError, ValueError):
        return None
    return moment


def _countable(layout: Layout) -> tuple[str, ...]:
    """String columns that usually hold few values: prompts and notes, not texts."""
    return layout.prompts + layout.notes


def _count(counter: Counter[Any], column: pa.Array, limit: int | None = _MOST_DISTINCT) -> int:
    """Add a column's values; returns how many rows were left out for having too many values."""
    left_out = 0
    for pair in pc.value_counts(column).to_pylist():
        if limit is not None and len(counter) >= limit and pair["values"] not in counter:
            left_out += pair["counts"]
        else:
            counter[pair["values"]] += pair["counts"]
    return left_out


def _histogram(tokens: Counter[int | None]) -> list[TokenBin]:
    """Bins 0 to 7, 8 to 15, 16 to 31, ... up to the longest, empty ones at the start left out."""
    known = {length: count for length, count in tokens.items() if length is not None}
    bins: list[TokenBin] = []
    first, last = 0, _FIRST_BIN - 1
    while known and first <= max(known):
        inside = sum(count for length, count in known.items() if first <= length <= last)
        if inside or bins:
            bins.append(TokenBin(first, last, inside))
        first, last = last + 1, 2 * last + 1
    return bins
