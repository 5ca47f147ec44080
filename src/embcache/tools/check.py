"""Check a space: every row and every data file; and delete the rows that are wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from embcache.errors import CacheError
from embcache.store.location import WRITE_FIX, lance_errors
from embcache.store.schema import (
    SpaceMetadata,
    read_metadata,
    schema_layout,
    space_schema,
    value_dim,
)
from embcache.tools.survey import RowIds, open_dataset, survey

_DELETE_ROWS = 10_000  # row ids in one delete statement


@dataclass(frozen=True)
class CheckReport:
    """What `check_space` found, and what it did about it.

    Attributes:
        path: Folder of the space.
        rows: Rows of the table.
        damaged: Rows that fail their checksum, or hold NaN or infinity.
        misfits: Intact rows whose key is not that of their identity, prompt and text.
        unverified: Intact rows without such a check: their text or prompt is not stored.
        duplicates: Intact rows whose key an intact row committed earlier has. They are harmless
            (two processes that encode the same text leave them) and cost disk.
        unreadable: Data files that Lance cannot read, each with its error.
        problems: What is wrong with the table as such: metadata, columns, name.
        deleted: Rows that were deleted; 0 without `fix`.
    """

    path: Path
    rows: int = 0
    damaged: int = 0
    misfits: int = 0
    unverified: int = 0
    duplicates: int = 0
    unreadable: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    deleted: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or nothing any more. Duplicates are not wrong."""
        bad = self.damaged + self.misfits
        return not self.problems and not self.unreadable and (not bad or self.deleted >= bad)

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {self.rows:,} rows, {'ok' if self.ok else 'NOT ok'}"]
        counts = {
            "damaged (checksum, NaN or infinity)": self.damaged,
            "whose key does not fit their text": self.misfits,
            "duplicates of rows committed earlier (harmless)": self.duplicates,
            "deleted; `compact_space` frees their space": self.deleted,
        }
        lines += [f"  {count:,} {what}" for what, count in counts.items() if count]
        lines += [f"  {problem}" for problem in self.problems]
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


def check_space(path: str | os.PathLike[str], *, fix: bool = False) -> CheckReport:
    """Read a whole space and check it.

    Args:
        path: Its folder, `<cache>/<name>.lance`.
        fix: Whether to delete damaged rows, misfits and duplicates. Files that cannot be read
            stay as they are; so does everything where the table as such has a problem: with
            another identity in its metadata, say, no key fits, and all of it would go.

    Returns:
        What was found. Memory: a batch, and about 50 bytes a row.

    Raises:
        ConfigError: There is no table.
        CacheError: Deleting failed.
    """
    folder = Path(path)
    try:
        dataset = open_dataset(folder)
        metadata = read_metadata(dataset.schema, str(folder))
    except CacheError as error:
        return CheckReport(folder, problems=(str(error),))
    problems = tuple(_table_problems(folder, dataset.schema, metadata))
    if any(_column_problems(dataset.schema, metadata)):  # then rows cannot be read, either
        return CheckReport(folder, dataset.count_rows(), problems=problems)
    found = survey(dataset, metadata.identity)
    later = found.row_ids[~found.first]
    report = CheckReport(
        folder,
        rows=found.rows,
        damaged=len(found.damaged),
        misfits=len(found.misfits),
        unverified=found.unverified,
        duplicates=len(later),
        unreadable=found.unreadable,
        problems=problems,
    )
    wrong = np.concatenate((found.damaged, found.misfits, later))
    if not fix or problems or not len(wrong):
        return report
    return replace(report, deleted=_delete_rows(folder, np.sort(wrong)))


def _table_problems(folder: Path, schema: pa.Schema, metadata: SpaceMetadata) -> Iterator[str]:
    fingerprint = metadata.identity.fingerprint()
    if not folder.name.endswith(f"--{fingerprint}.lance"):
        yield (
            f"its folder's name does not end in --{fingerprint}.lance, the fingerprint of the "
            "identity in its metadata, so embcache does not find it: rename it"
        )
    yield from _column_problems(schema, metadata)


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


def _delete_rows(folder: Path, row_ids: RowIds) -> int:
    """By stable row id, so that another process's compaction in between changes nothing."""
    import lancedb

    with lance_errors("Deleting rows from", folder, WRITE_FIX):
        connection = lancedb.connect(str(folder.parent), read_consistency_interval=timedelta(0))
        table = connection.open_table(folder.name.removesuffix(".lance"))
        for start in range(0, len(row_ids), _DELETE_ROWS):
            some = ", ".join(map(str, row_ids[start : start + _DELETE_ROWS].tolist()))
            table.delete(f"_rowid IN ({some})")
    return len(row_ids)
