"""What is merged, what is removed, and what stays."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from pathlib import Path

import lance
import numpy as np
import pytest

from embcache import CacheError
from embcache.store import Location, Space, compaction
from embcache.store.aside import Aside
from embcache.store.compaction import (
    FANOUT,
    Fragment,
    clean_up,
    fragments_to_merge,
    merge_fragments,
)
from embcache.store.leftovers import AGE
from embcache.store.manifests import manifest
from embcache.store.versions import read_versions
from tests.spaces import add_blindly, folder, make_rows, read_all

Open = Callable[..., Space]
NOW = timedelta(0)
KIB = 2**10


def of_rows(*rows: int, size: int = KIB) -> list[Fragment]:
    """Fragments with so many rows of a size each."""
    return [Fragment(number, count, 0, count * size) for number, count in enumerate(rows)]


@pytest.fixture
def alone(open_space: Open) -> Space:
    """A space that is not compacted but by the test."""
    return open_space(compact_automatically=False)


@pytest.fixture
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLACK_BYTES", 0)
    monkeypatch.setattr(compaction, "SLACK", 0)


def merge_all(space: Space) -> int:
    """Until nothing is left to do; how many rounds it took."""
    rounds = 0
    while merge_fragments(space.location, lambda: True):
        rounds += 1
    return rounds


def sizes(space: Space) -> list[int]:
    return [f.metadata.physical_rows for f in space.open().fragments]


def versions(space: Space) -> int:
    return len(list((folder(space) / "_versions").glob("*.manifest")))


def test_so_many_small_fragments_become_one() -> None:
    assert fragments_to_merge(of_rows(*[1] * (FANOUT - 1))) is None
    assert fragments_to_merge(of_rows(*[1] * FANOUT)) == set(range(FANOUT))


def test_a_large_fragment_is_not_written_again_for_a_few_rows() -> None:
    fragments = of_rows(100_000, *[1] * FANOUT)
    assert fragments_to_merge(fragments) == set(range(1, FANOUT + 1))


def test_each_row_is_written_again_once_a_level() -> None:
    """Fragments stay few, and what is written in all is a few times the rows."""
    table: list[int] = []
    written = most = 0
    for _ in range(20_000):
        table.append(1)
        chosen = fragments_to_merge(of_rows(*table))
        if chosen:
            merged = sum(table[i] for i in chosen)
            table = [rows for i, rows in enumerate(table) if i not in chosen] + [merged]
            written += merged
        most = max(most, len(table))
    assert most < 4 * FANOUT and written < 4 * 20_000


def test_fragments_of_a_quarter_gigabyte_are_let_be() -> None:
    assert fragments_to_merge(of_rows(*[300] * 40, size=2**20)) is None
    assert fragments_to_merge(of_rows(*[20] * FANOUT, size=2**20)) is not None


def test_neighbours_only() -> None:
    """Between large ones, small ones cannot become one: trying again at each commit is no use."""
    assert fragments_to_merge(of_rows(*[200_000, 1] * 3 * FANOUT, size=2 * KIB)) is None


def test_a_fragment_with_many_deleted_rows() -> None:
    whole, sparse = Fragment(0, 1000, 100, 10**6), Fragment(1, 1000, 200, 10**6)
    assert fragments_to_merge([whole, sparse]) == {1}


def test_nothing_to_do_in_an_empty_table() -> None:
    assert fragments_to_merge([]) is None


def test_sizes_that_lance_does_not_say() -> None:
    assert fragments_to_merge(of_rows(*[1] * FANOUT, size=0)) == set(range(FANOUT))


def test_merging_keeps_order_row_ids_and_values(alone: Space, open_space: Open) -> None:
    parts = [make_rows(["same", f"{i}", f"{i} more"], seed=i) for i in range(2 * FANOUT)]
    alone.add(parts[0])
    for part in parts[1:]:
        add_blindly(alone, part)
    ids = [batch.column("_rowid").to_pylist() for batch in alone.open().scan(["key"])]
    assert merge_all(alone) == 1 and len(sizes(alone)) == 1
    assert [*chain.from_iterable(ids)] == alone.open().dataset.scanner(
        columns=[], with_row_id=True
    ).to_table()["_rowid"].to_pylist()
    for space in (alone, open_space()):
        assert (read_all(space, parts[0])[0] == parts[0].values).all()
        assert (read_all(space, parts[9])[0][1:] == parts[9].values[1:]).all()


def test_the_first_committed_counts_where_a_merged_fragment_comes_behind_younger_ones(
    alone: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that goes on from its own index, and one that makes it anew, agree."""
    monkeypatch.setattr(compaction, "FANOUT", 2)
    first = make_rows(["same"], seed=1)
    alone.add(first)
    alone.add(make_rows(["other"]))
    add_blindly(alone, make_rows(["same", *(f"{i}" for i in range(100))], seed=2))
    follower = open_space(compact_automatically=False)
    orders = set()
    for i in range(8):
        assert (read_all(follower, first)[0] == first.values).all()
        assert (read_all(open_space(), first)[0] == first.values).all()
        alone.add(make_rows([f"more {i}"]))
        merge_all(alone)
        orders.add(sizes(alone)[0])
    assert orders == {101}, "no merged fragment came behind a younger one"


def test_deleted_rows_leave_the_disk(alone: Space, no_slack: None) -> None:
    rows = make_rows([f"{i}" for i in range(1000)], dim=64)
    alone.add(rows)
    before = alone.location.size()
    alone.drop(rows.keys[:300])
    assert merge_all(alone) == 1 and sizes(alone) == [700]
    alone.refresh()  # what this process reads stays
    clean_up(alone.location, NOW)
    assert alone.location.size() < 0.8 * before
    values, failed = read_all(alone, rows.take(np.arange(300, 1000)))
    assert not failed.any() and (values == rows.values[300:]).all()


def test_manifests_do_not_grow_with_the_number_of_commits(alone: Space) -> None:
    """Lance notes each row's version in every manifest: 22 bytes a commit, for ever."""

    def manifest_bytes() -> int:
        alone.add(make_rows(["last", str(time.time_ns())]))
        newest = min((folder(alone) / "_versions").glob("*.manifest"))
        return newest.stat().st_size

    def commit(first: int) -> None:
        for i in range(first, first + 3 * FANOUT):
            alone.add(make_rows([f"{i}"]))
            merge_all(alone)

    commit(0)
    few = manifest_bytes()
    commit(1000)
    assert manifest_bytes() < few + 10 * 150  # names of fragments, at most as many more


def test_a_row_that_another_process_deletes_meanwhile_stays_deleted(
    alone: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(FANOUT):
        alone.add(make_rows([f"{i}", f"{i} more"], seed=i))
    gone = make_rows(["3"])
    execute = compaction._execute

    def delete_first(*args: object) -> object:
        done = execute(*args)  # type: ignore[arg-type]
        open_space(compact_automatically=False).drop(gone.keys)
        return done

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="commit conflict"):
        patch.setattr(compaction, "_execute", delete_first)
        merge_all(alone)
    assert (alone.refresh().find(gone.keys) == -1).all()
    assert read_versions(alone.location).unnamed == ()  # a repair would take its rows in
    merge_all(alone)
    assert (alone.refresh().find(gone.keys) == -1).all() and len(alone.refresh()) == 2 * FANOUT - 1


def test_between_two_merged_fragments_it_can_be_stopped(
    alone: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first one is always merged, for processes that commit and exit at once."""
    for _ in range(2):
        for i in range(FANOUT):
            alone.add(make_rows([f"{i} {time.time_ns()}"]))
        rows = make_rows([f"{time.time_ns()} {i}" for i in range(5000)], dim=8)
        alone.add(rows)
    monkeypatch.setattr(compaction, "LARGEST_ROWS", 4096)
    assert merge_fragments(alone.location, lambda: False)
    assert sizes(alone) == [5000, *[1] * FANOUT, 5000, FANOUT]
    assert merge_fragments(alone.location, lambda: True)
    assert sizes(alone) == [5000, 5000, FANOUT, FANOUT]


def test_old_versions_go_when_they_take_more_than_the_slack(
    alone: Space, open_space: Open, no_slack: None
) -> None:
    parts = [make_rows([f"{i}"], seed=i) for i in range(FANOUT)]
    for part in parts:
        alone.add(part)
    merge_all(alone)
    alone.refresh()
    clean_up(alone.location, timedelta(minutes=1))
    assert versions(alone) > FANOUT  # they were the latest a moment ago
    clean_up(alone.location, NOW)
    assert versions(alone) == 1 and len(list((folder(alone) / "data").iterdir())) == 1
    for part in parts:
        assert (read_all(open_space(), part)[0] == part.values).all()


def test_old_versions_within_the_slack_stay_for_readers_without_a_pin(alone: Space) -> None:
    alone.add(make_rows(["a"]))
    unpinned = lance.dataset(str(folder(alone)))
    for i in range(FANOUT):
        alone.add(make_rows([f"{i}"]))
    merge_all(alone)
    clean_up(alone.location, NOW)
    assert unpinned.to_table()["text"].to_pylist() == ["a"]


def test_their_number_is_bounded_too(alone: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLACK_VERSIONS", 5)
    for i in range(12):
        alone.add(make_rows([f"{i}"]))
    oldest = alone.open().dataset.version - 5
    clean_up(alone.location, NOW)
    there = sorted(v["version"] for v in alone.open().dataset.versions())
    assert there[0] == oldest and len(there) == 6


def test_what_a_process_reads_stays(alone: Space, open_space: Open, no_slack: None) -> None:
    """A snapshot, and a reader of a tool; from when nothing holds them any more, they go."""
    first, more = make_rows(["a"], seed=1), make_rows(["b"], seed=2)
    alone.add(first)
    encoder = open_space()
    snapshot = encoder.refresh()
    alone.add(more)
    tool = open_space().open()
    for i in range(FANOUT):
        alone.add(make_rows([f"{i}"]))
    merge_all(alone)
    alone.refresh()
    clean_up(alone.location, NOW)
    assert (snapshot.read_all(snapshot.find(first.keys), first.keys)[0] == first.values).all()
    assert sum(len(batch) for batch in tool.scan(["text"])) == 2
    assert versions(alone) == 3
    del tool
    encoder.refresh()
    del snapshot
    clean_up(alone.location, NOW)
    assert versions(alone) == 1


def test_files_of_a_killed_writer_go_after_an_hour_unless_someone_commits(
    alone: Space, open_space: Open
) -> None:
    alone.add(make_rows(["a"]))
    hour = time.time() - AGE.total_seconds() - 60
    data, transaction = folder(alone) / "data", folder(alone) / "_transactions"
    old = [data / "killed.lance", transaction / "9-killed.txn"]
    for path in (*old, data / "recent.lance"):
        path.write_bytes(b"x")
    for path in (
        *old,
        *data.iterdir(),
        *transaction.iterdir(),
        *(folder(alone) / "_versions").iterdir(),
    ):
        if path.name != "recent.lance":
            os.utime(path, (hour, hour))
    with compaction.locks.in_turn(folder(alone)):  # suspended in the middle of a commit, say
        clean_up(alone.location, NOW)
    assert all(path.exists() for path in old)
    clean_up(alone.location, NOW)
    assert not any(path.exists() for path in old) and (data / "recent.lance").exists()
    assert len(open_space().refresh()) == 1 and len(list(open_space().open().scan(["key"]))) == 1


def test_data_files_stay_whose_manifest_was_set_aside(alone: Space) -> None:
    """A repair takes in what they hold."""
    alone.add(make_rows(["a"]))
    path = folder(alone) / "data" / "named-by-the-lost-one.lance"
    path.write_bytes(b"x")
    os.utime(path, (1, 1))
    aside = Aside(folder(alone))
    aside.move(manifest(folder(alone), 1))
    clean_up(alone.location, NOW)
    assert path.exists() and aside.folder is not None
    shutil.rmtree(aside.folder)
    clean_up(alone.location, NOW)
    assert not path.exists()


def test_where_there_are_no_locks_versions_stay_for_an_hour(
    alone: Space, no_slack: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an object store; nothing fails."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    for i in range(FANOUT):
        alone.add(make_rows([f"{i}"]))
    merge_all(alone)
    clean_up(alone.location, NOW)
    assert len(sizes(alone)) == 1 and versions(alone) > FANOUT
    monkeypatch.setattr(compaction, "KEPT", NOW)
    clean_up(alone.location, NOW)
    assert versions(alone) == 1


def no_locks(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_a_lance_that_names_its_files_otherwise_loses_none(
    alone: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.add(make_rows(["a"]))
    left = folder(alone) / "data" / "killed.lance"
    left.write_bytes(b"x")
    hour = time.time() - AGE.total_seconds() - 60
    os.utime(left, (hour, hour))
    monkeypatch.setattr(lance.LanceDataset, "tracked_files", lambda *_: [])
    clean_up(alone.location, NOW)
    assert left.exists()


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is no space: there is no Lance table"):
        merge_fragments(Location.of(tmp_path / "x.lance"), lambda: True)
