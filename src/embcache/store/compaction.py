"""What makes a table small and quick again: fragments are merged, and old files removed.

Every commit adds a fragment (a data file, mostly), and a manifest that names all fragments: left
alone, n small commits cost the disk of n * n / 2 names, and each takes longer than the one before.

Merging is by levels, as in a log-structured merge tree: some fragments of about one size become one
of the next size, so that a row is written again once a level, five times in all for a million
commits of one row, and a large fragment is not written again for a few rows more. What Lance does
by itself, all below a million rows into one, would write gigabytes again every few commits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lance
from lance.optimize import Compaction, CompactionOptions, CompactionTask, RewriteResult

from embcache.store import locks
from embcache.store.aside import has_left
from embcache.store.hosts import is_shared, now
from embcache.store.lance_errors import WRITE_FIX, is_conflict, lance_errors
from embcache.store.leftovers import AGE, remove_leftovers
from embcache.store.location import Location
from embcache.store.manifests import COMMIT_FOLDERS, DELETIONS, FOLDER, versions
from embcache.store.reader import open_table

FANOUT = 16
"""Fragments of one level that become one of the next."""

LARGEST_BYTES = 256 * 2**20
"""Of a merged fragment, about: what is written in a second, and so what an exit may wait for."""

LARGEST_ROWS = 2**20

DELETED = 0.15
"""Share of a fragment's rows that are deleted, from which on it is written again without them."""

SLACK_BYTES = 4 * 2**20
SLACK = 0.25
"""What old versions may take, beside what is in use: so many bytes, or this share of the rows'
bytes, if that is more. They are kept up to `KEPT` for readers that take no pin: DuckDB, say."""

SLACK_VERSIONS = 50
"""How many of them at most: Lance lists them all before each commit."""

KEPT = timedelta(hours=1)

_DECODED_BYTES = 32 * 2**20
_BATCH_BYTES = 2**20
_BATCH_ROWS = 8192
_LANCE_FOLDERS = (*COMMIT_FOLDERS, DELETIONS)
_ROW_VERSIONS = ("created_at_version_meta", "last_updated_at_version_meta")


@dataclass(frozen=True)
class Fragment:
    """What is to be known of a fragment to decide about it.

    Attributes:
        number: Lance's fragment id.
        rows: In its file, deleted ones included.
        deleted: How many of them are deleted.
        size: Bytes of its files; 0 where Lance does not say.
    """

    number: int
    rows: int
    deleted: int
    size: int

    @classmethod
    def of(cls, fragment: lance.LanceFragment) -> Fragment:
        """As Lance describes it."""
        known = fragment.metadata
        size = sum(file.file_size_bytes or 0 for file in known.files)
        return cls(fragment.fragment_id, known.physical_rows, known.num_deletions, size)

    @property
    def is_sparse(self) -> bool:
        """Whether too many of its rows are deleted."""
        return self.deleted > DELETED * self.rows


def fragments_to_merge(fragments: Sequence[Fragment]) -> set[int] | None:
    """Choose the fragments that are written again.

    Args:
        fragments: A version's, in their order: neighbours can become one.

    Returns:
        Their numbers; None where nothing is to be done.
    """
    upper, least = _largest_rows(fragments), {f.number for f in fragments if f.is_sparse}
    while upper >= 1:
        lower = upper // FANOUT
        if any(
            sum(fragment.rows >= lower for fragment in run) >= FANOUT
            for run in _runs(fragments, upper)
        ):
            return least | {f.number for f in fragments if f.rows < upper}
        upper = lower
    return least or None


def merge_fragments(location: Location, going_on: Callable[[], bool]) -> bool:
    """Write again what `fragments_to_merge` chooses, one commit a merged fragment.

    Row ids stay, and so which of two rows with one key counts; readers of earlier versions and
    appending writers notice nothing. A kill leaves the table as it was.

    Args:
        location: The table's place.
        going_on: Asked before each merged fragment but the first: processes that commit once and
            exit at once shall compact too.

    Returns:
        Whether anything was committed.

    Raises:
        CacheError: The file system refuses something; or another process deleted or merged the same
            rows at the same time, see `is_conflict`.
    """
    with lance_errors("Compacting", location, WRITE_FIX):
        dataset = open_table(location)
        options, merged = _plan(dataset), False
        if options is None:
            return False
        for task in Compaction.plan(dataset, options).tasks:
            if merged and not going_on():
                break
            with locks.in_turn(location.folder):
                _commit(_execute(task, dataset), dataset, location)
            merged = True
        return merged


def clean_up(location: Location, grace: timedelta) -> None:
    """Remove old versions that nobody reads, and what killed processes left.

    Versions that a process reads (`locks.pin`) stay. So do all others of the last hour, unless they
    are beyond the slack. Where nobody can say what is read, in a store and where other hosts may be
    at the table, all of the last hour stay.

    Args:
        location: The table's place.
        grace: Versions that were the latest so recently stay in any case.

    Raises:
        CacheError: The table cannot be opened, or the file system refuses something.
    """
    table = location.folder
    if table is None:
        with lance_errors("Compacting", location, WRITE_FIX):
            open_table(location).cleanup_old_versions(
                older_than=KEPT, error_if_tagged_old_versions=False
            )
        return
    with locks.between_turns(table) as alone, lance_errors("Compacting", location, WRITE_FIX):
        dataset = open_table(location)
        old = _superseded(table, KEPT)
        if alone:
            beyond = _garbage(table, dataset) > max(SLACK_BYTES, SLACK * _live(dataset))
            recent = _superseded(table, grace)
            old = recent if beyond else max(old, recent[:-SLACK_VERSIONS], key=len)
        _remove(dataset, [version for version in old if not locks.is_pinned(table, version)])
    remove_left_behind(location)


def remove_versions(location: Location, older_than: timedelta) -> None:
    """Remove the versions of a table in a folder that are so old, whoever reads them.

    Where other hosts may be at it, those of the last hour stay all the same: a writer that sees
    the table as it was some seconds ago would give its commit the number of one that is gone, and
    nobody would find it.

    Args:
        location: The table's place, a folder.
        older_than: For how long a version has not been the latest.

    Raises:
        CacheError: The table cannot be opened, or the file system refuses something.
    """
    table = location.folder
    assert table is not None  # in a store, Lance does it
    with lance_errors("Compacting", location, WRITE_FIX):
        kept = max(older_than, KEPT) if is_shared(table) else older_than
        _remove(open_table(location), _superseded(table, kept))


def remove_left_behind(location: Location, older_than: timedelta = AGE) -> None:
    """Remove what killed processes left, in a table and in its cache.

    Data files of commits that never came among it. Lance waits seven days for these, since it
    cannot know whether a commit is still to come. Here nobody is committing meanwhile
    (`locks.between_turns`; where that cannot be known, Lance's seven days count); the age is for
    writers that know nothing of that, and for files that are staged on other machines.

    Args:
        location: The table's place.
        older_than: What was changed since then may be in use, and stays; in the cache, whatever
            was changed in the last hour.

    Raises:
        CacheError: The table cannot be opened, or the file system refuses something.
    """
    table = location.folder
    if table is None:  # by Lance's own clean-up, after seven days: nobody can say who is committing
        return
    with locks.between_turns(table) as alone, lance_errors("Compacting", location, WRITE_FIX):
        remove_leftovers(table, older_than)
        remove_leftovers(table.parent)
        if alone and not has_left(table):  # else `check_space` may take in what such files hold
            _remove_orphans(location, table, older_than)


def _plan(dataset: lance.LanceDataset) -> CompactionOptions | None:
    """What Lance is to do; None for nothing."""
    fragments = [Fragment.of(fragment) for fragment in dataset.get_fragments()]
    chosen = fragments_to_merge(fragments)
    if chosen is None:
        return None
    copied = sum(fragment.size for fragment in fragments if fragment.number in chosen)
    return {
        # Decoding takes memory that grows with the rows, 280 MB for 240; copying takes 45, in half
        # the time, but leaves small pages as they are, and where rows are deleted Lance decodes.
        "compaction_mode": "try_binary_copy" if copied > _DECODED_BYTES else "reencode",
        "io_buffer_size": _DECODED_BYTES,
        "target_rows_per_fragment": _largest_rows(fragments),
        "materialize_deletions_threshold": DELETED,
        "excluded_fragment_ids": [f.number for f in fragments if f.number not in chosen],
        "num_threads": 1,
        "batch_size": max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / _row_bytes(fragments)))),
    }


def _largest_rows(fragments: Sequence[Fragment]) -> int:
    return max(1, min(LARGEST_ROWS, int(LARGEST_BYTES / _row_bytes(fragments))))


def _row_bytes(fragments: Sequence[Fragment]) -> float:
    rows = sum(fragment.rows for fragment in fragments)
    return max(1.0, sum(fragment.size for fragment in fragments) / max(1, rows))


def _runs(fragments: Sequence[Fragment], upper: int) -> Iterator[list[Fragment]]:
    """Neighbours with fewer rows than `upper`: only these can become one."""
    run: list[Fragment] = []
    for fragment in fragments:
        if fragment.rows < upper:
            run.append(fragment)
        else:
            yield run
            run = []
    yield run


def _execute(task: CompactionTask, dataset: lance.LanceDataset) -> RewriteResult:
    """Write a merged fragment, without what Lance remembers of each of its rows' versions.

    Lance keeps, for each commit that a fragment's rows are from, 22 bytes in every later manifest:
    the one cost that merging would not bound. Nothing of embcache's reads these versions (they are
    `_row_created_at_version`, 1 then); rows have `created_at`.
    """
    # json and from_json are not in Lance's stubs; pickling a result goes through them.
    result = json.loads(task.execute(dataset).json())  # type: ignore[attr-defined]
    for fragment in result["new_fragments"]:
        for name in _ROW_VERSIONS:
            fragment.pop(name, None)
    plain: RewriteResult = RewriteResult.from_json(json.dumps(result))  # type: ignore[attr-defined]
    return plain


def _commit(result: RewriteResult, dataset: lance.LanceDataset, location: Location) -> None:
    """Commit a merged fragment; one that is refused leaves no file behind.

    Lance would leave it, and a repair would take its rows in, those that were deleted meanwhile
    among them.
    """
    try:
        Compaction.commit(dataset, [result])
    except Exception as error:
        if is_conflict(error):
            for fragment in json.loads(result.json())["new_fragments"]:  # type: ignore[attr-defined]
                for file in fragment["files"]:
                    location.remove_file(f"data/{file['path']}")
        raise


def _remove(dataset: lance.LanceDataset, old: Sequence[int]) -> None:
    free = [version for version in old if version < dataset.version]
    if free:
        dataset.cleanup_old_versions(
            older_than=timedelta(0), versions=free, error_if_tagged_old_versions=False
        )


def _superseded(table: Path, ago: timedelta) -> list[int]:
    """Versions that have not been the latest for so long."""
    limit = now(table) - ago.total_seconds()
    written: dict[int, float] = {}
    for version, path in reversed(versions(table).items()):
        with suppress(FileNotFoundError):  # another process removes it
            written[version] = path.stat().st_mtime
    newer = list(written.values())[1:]
    return [version for version, next_ in zip(written, newer, strict=False) if next_ <= limit]


def _files(table: Path) -> dict[str, os.stat_result]:
    """Lance's files, by path within the table; canaries, a table of their own, are left out."""
    found: dict[str, os.stat_result] = {}
    for name in _LANCE_FOLDERS:
        try:
            with os.scandir(table / name) as entries:
                found |= {f"{name}/{e.name}": e.stat() for e in entries if e.is_file()}
        except FileNotFoundError:  # no deletions yet; or removed by another process meanwhile
            continue
    return found


def _live(dataset: lance.LanceDataset) -> int:
    return sum(Fragment.of(fragment).size for fragment in dataset.get_fragments())


def _garbage(table: Path, dataset: lance.LanceDataset) -> int:
    """Bytes of all files but the latest version's data."""
    return sum(file.st_size for file in _files(table).values()) - _live(dataset)


def _remove_orphans(location: Location, table: Path, older_than: timedelta) -> None:
    """Remove old files that belong to no version."""
    limit = now(table) - older_than.total_seconds()
    old = {
        path
        for path, file in _files(table).items()
        if file.st_mtime < limit and not path.startswith(f"{FOLDER}/")
    }
    if not old:
        return
    dataset = open_table(location)
    latest = {f"data/{file.path}" for f in dataset.get_fragments() for file in f.metadata.files}
    if old <= latest:
        return
    needed: set[str] = set()
    for batch in dataset.tracked_files():
        needed.update(batch.column("path").to_pylist())
    if latest <= needed:  # else this Lance writes paths in another way, and all would go
        for path in old - needed:
            (table / path).unlink(missing_ok=True)
