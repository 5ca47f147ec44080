"""Compaction by itself, beside writers and readers, and at the end of a process."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from embcache import CacheError, CacheWriteError
from embcache.store import Space, background, compaction
from embcache.store.compaction import FANOUT
from tests.conftest import ROOT
from tests.spaces import folder, make_rows, read_all

Open = Callable[..., Space]


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "GRACE", timedelta(0))


@pytest.fixture
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLACK_BYTES", 0)
    monkeypatch.setattr(compaction, "SLACK", 0)


def settle() -> None:
    """Wait for all compaction of this process."""
    for thread in threading.enumerate():
        if thread.name == "embcache-compactor":
            thread.join(30)


def fill(space: Space, commits: int) -> None:
    for i in range(commits):
        space.add(make_rows([f"{i}"], seed=i))


def fragments(space: Space) -> int:
    return len(space.open().fragments)


def test_many_small_commits_leave_few_fragments_and_every_row(open_space: Open) -> None:
    space = open_space()
    fill(space, 5 * FANOUT)
    settle()
    assert fragments(space) < 2 * FANOUT
    for i in range(5 * FANOUT):
        rows = make_rows([f"{i}"], seed=i)
        assert (read_all(open_space(), rows)[0] == rows.values).all()


def test_it_can_be_turned_off(open_space: Open) -> None:
    space = open_space(compact_automatically=False)
    fill(space, FANOUT + 1)
    space.drop(make_rows(["0"]).keys)
    assert "embcache-compactor" not in {thread.name for thread in threading.enumerate()}
    assert fragments(space) == FANOUT
    assert space.canaries._compact_automatically is False


def test_this_process_moves_on_so_that_the_old_files_go(open_space: Open, no_slack: None) -> None:
    space = open_space()
    fill(space, FANOUT)
    settle()
    assert len(list((folder(space) / "data").iterdir())) == 1


def test_deletions_count_too(open_space: Open, no_slack: None) -> None:
    space, rows = open_space(), make_rows([f"{i}" for i in range(100)])
    space.add(rows)
    space.drop(rows.keys[:50])
    settle()
    [fragment] = space.open().fragments
    assert fragment.metadata.physical_rows == 50


def test_a_reader_is_not_disturbed(open_space: Open, no_slack: None) -> None:
    writer = open_space()
    first = make_rows([f"first {i}" for i in range(50)])
    writer.add(first)
    reader = open_space()
    snapshot = reader.refresh()
    fill(writer, 3 * FANOUT)
    settle()
    assert (snapshot.read_all(snapshot.find(first.keys), first.keys)[0] == first.values).all()


def test_canaries_are_compacted_as_rows_are(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    fill(space.canaries, FANOUT)
    settle()
    assert fragments(space.canaries) == 1


def test_a_failure_is_said_once_and_the_commit_holds(
    open_space: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def full(*_: object) -> bool:
        tries.append(1)
        raise CacheWriteError("Compacting failed: No space left on device.")

    monkeypatch.setattr(background, "merge_fragments", full)
    monkeypatch.setattr(background, "_PAUSE_SECONDS", 0)
    space = open_space()
    fill(space, FANOUT + 3)
    settle()
    assert len(space.refresh()) == FANOUT + 3 and len(tries) > 1
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "No space left on device. This was compaction in the background" in record.message
    assert "compact_automatically=False" in record.message


def test_after_a_failure_it_rests(open_space: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(*_: object) -> bool:
        tries.append(1)
        raise CacheWriteError("Compacting failed.")

    monkeypatch.setattr(background, "merge_fragments", fail)
    space = open_space()
    fill(space, FANOUT)
    settle()
    fill(space, 2 * FANOUT)
    settle()
    assert len(tries) == 1


def test_a_lost_race_is_no_warning(
    open_space: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(*_: object) -> bool:
        raise CacheError("Compacting x failed: Retryable commit conflict for version 8")

    monkeypatch.setattr(background, "merge_fragments", lose)
    with caplog.at_level(logging.INFO):
        fill(open_space(), FANOUT)
        settle()
    assert "commit conflict" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("said", "warnings"),
    [
        ("No space left on device (os error 28)", 0),  # the next commit says what is lost
        ("Not found: a.lance/data/b.lance", 0),  # and the next read
        ("Permission denied (os error 13)", 1),  # of files that are to be removed, say
    ],
)
def test_what_a_writer_or_reader_says_is_not_said_twice(
    open_space: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: str,
    warnings: int,
) -> None:
    def fail(*_: object) -> bool:
        raise CacheWriteError(f"Compacting x failed: OSError: {said}.")

    monkeypatch.setattr(background, "merge_fragments", fail)
    with caplog.at_level(logging.INFO):
        fill(open_space(), FANOUT)
        settle()
    assert said in caplog.text
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == warnings


def test_a_space_that_is_removed_meanwhile(
    open_space: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "GRACE", timedelta(seconds=0.3))
    space = open_space()
    fill(space, 2)
    space.location.remove()
    settle()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_one_thread_at_a_time(open_space: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [], []
    merge = background.merge_fragments

    def watched(*args: object) -> bool:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        try:
            return merge(*args)  # type: ignore[arg-type]
        finally:
            running.pop()

    monkeypatch.setattr(background, "merge_fragments", watched)
    one, other = open_space(), open_space()
    threads = [
        threading.Thread(
            target=lambda s=s, n=n: [s.add(make_rows([f"{n} {i}"])) for i in range(40)]
        )
        for n, s in enumerate((one, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle()
    assert most and max(most) == 1 and len(open_space().refresh()) == 80


def run(code: str) -> float:
    """Seconds that a process takes from the end of its last line to its own."""
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0 and not process.stderr, process.stderr
    return began + time.monotonic() - float(process.stdout) - began


COMMIT = """
import sys, time
from embcache.store import Location, Space
from tests.spaces import make_rows
space = Space(Location.of({uri!r}))
{more}
space.add(make_rows([str(time.time_ns())]))
print(time.monotonic())
"""


@pytest.mark.slow
def test_processes_that_commit_once_and_exit(open_space: Open) -> None:
    """An exit merges what is due, cleans up, and does not wait for the grace period."""
    space = open_space(compact_automatically=False)
    fill(space, FANOUT - 2)
    uri = str(space.location)
    more = "import embcache.store.compaction as c; c.SLACK_BYTES = c.SLACK = 0"
    for _ in range(2):
        assert run(COMMIT.format(uri=uri, more=more)) < 3
    space.refresh()
    run(COMMIT.format(uri=uri, more=more))
    assert fragments(space) == 2 and len(space.refresh()) == FANOUT + 1
    assert len(list((folder(space) / "_versions").glob("*.manifest"))) <= 2
