"""Check a space: every row and every data file; and delete the rows that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from embcache.errors import CacheError
from embcache.store import Location, Reader, Space
from embcache.store.schema import (
    SpaceMetadata,
    schema_layout,
    space_schema,
    value_dim,
)
from embcache.tools.verified_rows import survey


@dataclass(frozen=True)
class CanaryReport:
    """The canaries of a space, see `embcache.pipeline.canaries`.

    Attributes:
        count: How many there are.
        prompts: The prompts that they were encoded with, as far as the space keeps and knows
            them; of scores, the prefixes.
        engine_version: Engine package and version that the first of them come from.
        damaged: How many of them fail their checksum, or have a key that does not fit.
        problem: Why their table cannot be read; None if it can.
        mended: Whether what is wrong was deleted; the next write adds them again.
    """

    count: int = 0
    prompts: tuple[str, ...] = ()
    engine_version: str | None = None
    damaged: int = 0
    problem: str | None = None
    mended: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with them, or nothing any more."""
        return self.mended or not (self.damaged or self.problem)

    def __str__(self) -> str:
        if not self.count and self.problem is None:
            return ""
        prompts = f"; prompts {', '.join(map(repr, self.prompts))}" if self.prompts else ""
        lines = [
            f"canaries: {self.count} ({self.engine_version}{prompts})"
            if self.problem is None
            else f"canaries cannot be read: {self.problem}"
        ]
        if self.damaged:
            lines.append(f"{self.damaged} canaries are damaged")
        if self.mended:
            lines.append("damaged canaries are deleted; the next write adds them again")
        return "\n".join(lines)


@dataclass(frozen=True)
class CheckReport:
    """What `check_space` found, and what it did about it.

    Attributes:
        location: Folder of the space.
        rows: Rows of the table.
        damaged: Rows that fail their checksum, or hold NaN or infinity.
        misfits: Intact rows whose key is not that of their identity, prompt and text.
        unverified: Intact rows without such a check: their text or prompt is not stored.
        duplicates: Intact rows whose key an intact row committed earlier has. They are harmless
            (two processes that encode the same text leave them) and cost disk.
        unreadable: Data files that Lance cannot read, each with its error.
        problems: What is wrong with the table as such: metadata, columns, name.
        deleted: Rows that were deleted; 0 without `fix`.
        canaries: Of the texts by which a changed model is noticed; they are no rows.
    """

    location: Location
    rows: int = 0
    damaged: int = 0
    misfits: int = 0
    unverified: int = 0
    duplicates: int = 0
    unreadable: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    deleted: int = 0
    canaries: CanaryReport = field(default_factory=CanaryReport)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or nothing any more. Duplicates are not wrong."""
        bad = self.damaged + self.misfits
        whole = not self.problems and not self.unreadable and self.canaries.ok
        return whole and (not bad or self.deleted >= bad)

    def __str__(self) -> str:
        lines = [f"{self.location.name}: {self.rows:,} rows, {'ok' if self.ok else 'NOT ok'}"]
        counts = {
            "damaged (checksum, NaN or infinity)": self.damaged,
            "whose key does not fit their text": self.misfits,
            "duplicates of rows committed earlier (harmless)": self.duplicates,
            "deleted; `compact_space` frees their space": self.deleted,
        }
        lines += [f"  {count:,} {what}" for what, count in counts.items() if count]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  {line}" for line in str(self.canaries).splitlines()]
        lines += [f"  cannot be read: {file}" for file in self.unreadable]
        if self.unreadable:
            lines.append(
                "  `merge_caches` into a new cache saves the rows of the other files; or move "
                "the folder away: its texts are encoded again."
            )
        elif not self.ok and not self.problems:
            lines.append(
                "  `check_space` with fix=True deletes these rows; they are encoded again."
            )
        return "\n".join(lines)


def check_space(space: Space, *, fix: bool = False) -> CheckReport:
    """Read a whole space and check it.

    Args:
        space: The space; one whose table cannot be opened is reported, not raised.
        fix: Whether to delete damaged rows, misfits and duplicates. Files that cannot be read
            stay as they are; so does everything where the table as such has a problem: with
            another identity in its metadata, say, no key fits, and all of it would go.

    Returns:
        What was found. Memory: a batch, and about 50 bytes a row.

    Raises:
        ConfigError: There is no table.
        CacheError: Deleting failed.
    """
    try:
        reader = space.open()
    except CacheError as error:
        return CheckReport(space.location, problems=(str(error),))
    problems = tuple(_table_problems(reader))
    if any(_column_problems(reader.schema, reader.metadata)):  # then rows cannot be read, either
        return CheckReport(space.location, len(reader), problems=problems)
    found = survey(reader)
    later = found.row_ids[~found.first]
    report = CheckReport(
        space.location,
        rows=found.rows,
        damaged=len(found.damaged),
        misfits=len(found.misfits),
        unverified=found.unverified,
        duplicates=len(later),
        unreadable=found.unreadable,
        problems=problems,
        canaries=check_canaries(space, fix=fix),
    )
    wrong = np.concatenate((found.damaged, found.misfits, later))
    if not fix or problems or not len(wrong):
        return report
    space.delete_rows(np.sort(wrong))
    return replace(report, deleted=len(wrong))


def check_canaries(space: Space, *, fix: bool = False) -> CanaryReport:
    """Check the canaries of a space.

    Args:
        space: The space, whose table can be opened.
        fix: Whether to delete them where any of them is damaged.

    Returns:
        What was found.

    Raises:
        CacheError: Deleting failed.
    """
    canaries = space.canaries
    if not canaries.location.has_table():
        return CanaryReport()
    try:
        reader = canaries.open()
        found = survey(reader)
        prompts = [name for name in reader.layout.prompts if name in reader.columns]
        rows = [row for batch in reader.scan(prompts) for row in batch.select(prompts).to_pylist()]
        report = CanaryReport(
            found.rows,
            tuple(dict.fromkeys(v for row in rows for v in row.values() if v is not None)),
            reader.metadata.engine_version,
            damaged=len(found.damaged) + len(found.misfits),
            problem="; ".join(found.unreadable) or None,
        )
    except CacheError as error:
        report = CanaryReport(problem=str(error))
    if fix and not report.ok:
        canaries.location.remove()
        return replace(report, mended=True)
    return report


def _table_problems(reader: Reader) -> Iterator[str]:
    fingerprint = reader.metadata.identity.fingerprint()
    if not reader.location.name.endswith(f"--{fingerprint}"):
        yield (
            f"its folder's name does not end in --{fingerprint}.lance, the fingerprint of the "
            "identity in its metadata, so embcache does not find it: rename it"
        )
    yield from _column_problems(reader.schema, reader.metadata)


def _column_problems(schema: pa.Schema, metadata: SpaceMetadata) -> Iterator[str]:
    layout = schema_layout(schema)
    wanted = {"key", "checksum", layout.value}
    if missing := wanted - set(schema.names):
        yield f"columns are missing: {', '.join(sorted(missing))}"
        return
    kind = schema.field(layout.value).type
    if layout.value == "vector" and not pa.types.is_fixed_size_list(kind):
        yield f"column vector is {kind}, not fixed_size_list<float>"
        return
    expected = space_schema(layout, value_dim(schema), metadata, store_text=True)
    for name in schema.names:
        if name in expected.names and schema.field(name).type != expected.field(name).type:
            yield f"column {name} is {schema.field(name).type}, not {expected.field(name).type}"
