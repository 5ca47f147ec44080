"""Check a space: every version, every data file and every row; and have it mended."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from embcache.errors import CacheError
from embcache.store import Location, Space
from embcache.store.aside import Aside
from embcache.store.locks import only_one, sole_compactor
from embcache.store.reader import check_table
from embcache.store.untrusted import strangers
from embcache.store.versions import read_versions
from embcache.tools.repair import Condition, Repair, examine, repair_space
from embcache.tools.verified_rows import survey

_SHOWN = 5  # of the versions that cannot be used


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
        unnamed: Data files that no version names while a manifest seems to be lost: `fix` takes in
            what rows they hold. Others of that kind are left-overs, which compaction removes.
        deleted: Rows that were deleted one by one; 0 without `fix`.
        strangers: What lay in the table and is nothing of it (a pipe, a link that leads nowhere, a
            file in a folder's place), and was set aside by `fix`.
        repair: What was mended; None without `fix`, or where nothing was to be.
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
    unnamed: int = 0
    deleted: int = 0
    strangers: tuple[Path, ...] = ()
    repair: Repair | None = None
    canaries: CanaryReport = field(default_factory=CanaryReport)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or nothing any more. Duplicates are not wrong."""
        bad = self.damaged or self.misfits or self.problems or self.unreadable
        mended = self.repair is not None and self.repair.sound
        return (mended or not bad) and self.canaries.ok

    def __str__(self) -> str:
        lines = [f"{self.location.name}: {self.rows:,} rows, {'ok' if self.ok else 'NOT ok'}"]
        counts = {
            "damaged (checksum, NaN or infinity)": self.damaged,
            "whose key does not fit their text": self.misfits,
            "duplicates of rows committed earlier (harmless)": self.duplicates,
            "data files that no version names; `check_space` with fix=True takes in their rows": (
                0 if self.repair else self.unnamed
            ),
            "deleted; `compact_space` frees their space": self.deleted,
        }
        lines += [f"  {count:,} {what}" for what, count in counts.items() if count]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  {path} is nothing of the table's: set aside" for path in self.strangers]
        lines += [f"  cannot be read: {file}" for file in self.unreadable]
        lines += [f"  {line}" for line in str(self.canaries).splitlines()]
        lines += [f"  {line}" for line in str(self.repair or "").splitlines()]
        if not self.ok and self.repair is None:
            lines.append(
                "  `check_space` with fix=True mends what can be mended; the rest is encoded again."
            )
        return "\n".join(lines)


def check_space(space: Space, *, fix: bool = False) -> CheckReport:
    """Read a whole space and check it: every manifest, every data file, every row.

    Args:
        space: The space; one whose table cannot be opened is reported, not raised.
        fix: Whether to mend what is wrong, see `embcache.tools.repair`: afterwards the space opens,
            every row that could be read in any way is there, and what could not is a miss. What
            is taken out of it lies in a hidden folder beside it. Duplicates are deleted too. A
            space that was renamed, or is of a newer format, is left as it is: its files are whole.

    Returns:
        What was found. Memory: a batch, and about 60 bytes a row.

    Raises:
        ConfigError: There is no table.
        CacheError: It cannot be written.
    """
    location = space.location
    if location.folder is not None and (found := strangers(location.folder)):
        return _without_strangers(space, location.folder, found, fix=fix)
    if not location.is_lost_table():
        check_table(location)
    location.check_table()
    # None of another process's merged files is half there, and looks like a lost one.
    with sole_compactor(location.folder, wait=True) if fix else nullcontext():
        return _check(location, fix=fix)


def _without_strangers(space: Space, table: Path, found: list[Path], *, fix: bool) -> CheckReport:
    """Report what is nothing of a table, or set it aside and go on; until then none is opened."""
    if not fix:
        problems = (f"{path} is no file, or in the place of a folder or file" for path in found)
        return CheckReport(space.location, problems=tuple(problems))
    aside = Aside(table)
    with only_one(table.parent):
        for path in found:
            aside.move(path)
    if not (space.location.has_table() or space.location.is_lost_table()):
        return CheckReport(space.location, strangers=tuple(found))
    return replace(check_space(space, fix=fix), strangers=tuple(found))


def _check(location: Location, *, fix: bool) -> CheckReport:
    condition = examine(location)
    report = _report(condition)
    mendable = not report.ok or report.duplicates or report.unnamed
    if fix and not condition.refused and mendable:
        repair = repair_space(condition)
        if repair != Repair(sound=True):  # else unnamed files held nothing new
            report = replace(report, repair=repair, deleted=repair.deleted)
    opens = condition.found is not None and not any(
        bad.newer for bad in condition.versions.unusable
    )
    if report.repair is not None:
        opens = report.repair.sound and not report.repair.moved
    if not opens:
        return report
    return replace(report, canaries=check_canaries(Space(location), fix=fix))


def _report(condition: Condition) -> CheckReport:
    found, versions = condition.found, condition.versions
    problems = [condition.refused] if condition.refused else []
    problems += [bad.why for bad in versions.unusable[:_SHOWN]]
    if len(versions.unusable) > _SHOWN:
        problems.append(f"{len(versions.unusable) - _SHOWN:,} more versions cannot be used")
    if found is None:
        return CheckReport(condition.location, problems=(*problems, *_lost(condition)))
    if any(bad.newer for bad in versions.unusable):
        problems.append(f"an older version, with {found.rows:,} rows, can be used")
    return CheckReport(
        condition.location,
        rows=found.rows,
        damaged=len(found.damaged),
        misfits=len(found.misfits),
        unverified=found.unverified,
        duplicates=len(condition.later),
        unreadable=found.unreadable,
        unnamed=len(versions.unnamed) if condition.lacks_rows else 0,
        problems=tuple(problems),
    )


def _lost(condition: Condition) -> list[str]:
    if condition.refused:
        return []
    count = len(condition.versions.unnamed)
    return [f"no version of it can be used; {count:,} data files are there"]


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
    if not (canaries.location.has_table() or canaries.location.is_lost_table()):
        return CanaryReport()
    try:
        reader = canaries.open()
        found = survey(reader)
        prompts = [name for name in reader.layout.prompts if name in reader.columns]
        batches = [] if found.unreadable else reader.scan(prompts)
        rows = [row for batch in batches for row in batch.select(prompts).to_pylist()]
        report = CanaryReport(
            found.rows,
            tuple(dict.fromkeys(v for row in rows for v in row.values() if v is not None)),
            reader.metadata.engine_version,
            damaged=len(found.damaged) + len(found.misfits),
            problem="; ".join((*found.unreadable, *_unusable(canaries))) or None,
        )
    except CacheError as error:
        report = CanaryReport(problem=str(error))
    if fix and not report.ok:
        canaries.location.remove()
        return replace(report, mended=True)
    return report


def _unusable(space: Space) -> list[str]:
    return [bad.why for bad in read_versions(space.location).unusable[:1]]
