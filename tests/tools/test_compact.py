"""Compaction beside readers and writers; what killed writers left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import lancedb
import pytest
from lance.fragment import write_fragments

from embcache import CacheError, ConfigError
from embcache.store import Location, Space
from embcache.tools.compact import CompactReport, compact_space
from tests.spaces import add_blindly, folder, make_rows, read_all

Open = Callable[..., Space]
NOW = timedelta(0)


def filled(open_space: Open, parts: int = 6, each: int = 50) -> Space:
    space = open_space()
    for part in range(parts):
        space.add(make_rows([f"{part} {i}" for i in range(each)], seed=part))
    return space


def test_fragments_become_one_and_every_row_stays(open_space: Open) -> None:
    space = filled(open_space)
    report = compact_space(space)
    assert (report.fragments_before, report.fragments_after) == (6, 1)
    assert "6 -> 1 fragments" in str(report) and "MB" in str(report)
    fresh = open_space()
    for part in range(6):
        rows = make_rows([f"{part} {i}" for i in range(50)], seed=part)
        vectors, failed = read_all(fresh, rows)
        assert not failed.any() and vectors.tobytes() == rows.values.tobytes()


def test_readers_of_an_older_version_go_on_within_the_grace_period(open_space: Open) -> None:
    space, rows = filled(open_space), make_rows([f"0 {i}" for i in range(50)], seed=0)
    reader = open_space()
    report = compact_space(space)
    assert report.bytes_after > report.bytes_before  # old files are still there
    vectors, failed = read_all(reader, rows)
    assert not failed.any() and (vectors == rows.values).all()


def test_without_a_grace_period_the_disk_of_deleted_rows_is_freed(open_space: Open) -> None:
    space = open_space()
    rows = make_rows([f"text {i}" for i in range(2000)], dim=64)
    space.add(rows)
    space.drop(rows.keys[:1500])
    report = compact_space(space, older_than=NOW)
    assert report.bytes_after < 0.4 * report.bytes_before
    fresh = open_space()
    assert len(fresh.refresh()) == 500 and (fresh.refresh().find(rows.keys[1500:]) >= 0).all()


def test_the_row_committed_first_still_counts(open_space: Open) -> None:
    space = open_space()
    parts = [make_rows(["same", f"other {i}"], seed=i) for i in range(5)]
    for part in parts:
        space.add(part)
    compact_space(space, older_than=NOW)
    assert (read_all(open_space(), parts[0])[0] == parts[0].values).all()


def test_duplicates_go_before_fragments_are_merged(open_space: Open) -> None:
    """And canaries' too, which two processes may have added at once."""
    space, rows = filled(open_space, parts=3), make_rows([f"0 {i}" for i in range(50)], seed=0)
    space.canaries.add(rows)
    for one in (space, space.canaries):
        add_blindly(one, make_rows([f"0 {i}" for i in range(30)], seed=9))
    report = compact_space(space, older_than=NOW)
    assert report.duplicates == 60 and ", 60 duplicates removed, " in str(report)
    fresh = open_space()
    assert len(fresh.refresh()) == 150 and len(fresh.canaries.refresh()) == 50
    for one in (fresh, fresh.canaries):
        values, failed = read_all(one, rows)
        assert not failed.any() and values.tobytes() == rows.values.tobytes()
        (fragment,) = one.open().fragments
        assert fragment.metadata.physical_rows == len(one.refresh())  # written without them
    again = compact_space(space, older_than=NOW)
    assert again.duplicates == 0 and "duplicate" not in str(again)


def test_a_damaged_space_is_compacted_as_far_as_it_was(
    open_space: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the keys of a file that need not be written again cannot be read."""
    space, rows = open_space(compact_automatically=False), make_rows(["a", "b"])
    space.add(rows)
    (path,) = (folder(space) / "data").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert compact_space(space).duplicates == 0
    assert "Duplicates stay where keys cannot be read" in caplog.text


def test_a_killed_writers_rows_go_when_they_are_an_hour_old(open_space: Open) -> None:
    """Data files that Lance wrote for commits that never came."""
    space = filled(open_space, parts=2)
    folders = [folder(space), folder(space.canaries)]
    space.canaries.add(make_rows(["canary"]))
    old, recent = [written_only(place) for place in folders], [*map(written_only, folders)]
    for path in old:
        hours_ago = time.time() - 2 * 3600
        os.utime(path, (hours_ago, hours_ago))
    compact_space(space, older_than=timedelta(seconds=1))  # somebody else may be writing
    assert not any(path.exists() for path in old) and all(path.exists() for path in recent)
    compact_space(space, older_than=NOW)
    assert not any(path.exists() for path in recent)
    assert len(open_space().refresh()) == 100


def written_only(table: Path) -> Path:
    """A data file of some rows of a table that is not committed."""
    dataset = lance.dataset(str(table))
    (fragment,) = write_fragments(dataset.head(1), dataset)
    return table / "data" / fragment.files[0].path


def test_a_killed_writers_file_goes_when_it_is_a_week_old(open_space: Open) -> None:
    space = filled(open_space)
    old, recent = folder(space) / "data" / "old.lance", folder(space) / "data" / "recent.lance"
    for path in (old, recent):  # written, and never committed
        path.write_bytes(b"x" * 1000)
    week = time.time() - 8 * 24 * 3600
    os.utime(old, (week, week))
    compact_space(space)
    assert not old.exists() and recent.exists()


def test_twice_changes_nothing(open_space: Open) -> None:
    space = filled(open_space)
    compact_space(space, older_than=NOW)
    again = compact_space(space, older_than=NOW)
    assert (again.fragments_before, again.fragments_after) == (1, 1)
    assert len(open_space().refresh()) == 300


def test_beside_a_writer_that_appends_and_deletes(open_space: Open) -> None:
    """Conflicts are tried again; no committed row is lost."""
    space = filled(open_space)
    written = [make_rows([f"more {part} {i}" for i in range(20)], seed=part) for part in range(8)]
    errors: list[Exception] = []

    def write() -> None:
        try:
            writer = open_space()
            for part in written:
                writer.add(part)
                writer.drop(part.keys[:5])
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    times = 0
    while thread.is_alive():
        compact_space(space)
        times += 1
    thread.join()
    assert times and not errors
    fresh = open_space()
    for part in written:
        assert (fresh.refresh().find(part.keys[:5]) == -1).all()
        assert (fresh.refresh().find(part.keys[5:]) >= 0).all()
    assert len(fresh.refresh()) == 300 + 8 * 15


def test_a_conflict_that_stays_is_an_error(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = filled(open_space, parts=1)
    calls = []

    def conflict(*_: object, **__: object) -> None:
        calls.append(1)
        raise RuntimeError("lance error: Retryable commit conflict for version 8")

    monkeypatch.setattr(lancedb.table.LanceTable, "optimize", conflict)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(CacheError, match=r"Compacting .* failed: .*commit conflict"):
        compact_space(space)
    assert len(calls) == 5


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no space: there is no Lance table"):
        compact_space(Space(Location.of(tmp_path)))


def test_a_folder_that_is_larger_afterwards_is_explained() -> None:
    report = CompactReport(Location.of("x.lance"), 3, 1, 1_000_000, 2_000_000)
    assert "1.0 -> 2.0 MB (the old files stay for who reads them" in str(report)
    assert "old files" not in str(CompactReport(Location.of("x.lance"), 3, 1, 2_000_000, 1_000_000))
