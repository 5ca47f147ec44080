"""Pins and turns, between processes: what dies with a process, and what waits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from embcache.store import Space, locks
from tests.spaces import folder, make_rows, refused

Open = Callable[..., Space]
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def table(open_space: Open) -> Path:
    space = open_space(compact_automatically=False)
    space.add(make_rows(["a"]))
    return folder(space)


def hold(path: str, version: int, pipe: Connection) -> None:
    """A process that pins a version and commits, until it is killed."""
    held = locks.pin(Path(path), version)
    with locks.in_turn(Path(path)), locks.sole_compactor(Path(path)) as alone:
        pipe.send((held is not None, alone))
        time.sleep(600)


def test_what_a_process_holds_is_free_when_it_is_killed(table: Path) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(str(table), 1, theirs))
    process.start()
    assert ours.recv() == (True, True)
    assert locks.is_pinned(table, 1) and not locks.is_pinned(table, 2)
    with locks.between_turns(table) as alone, locks.sole_compactor(table) as sole:
        assert not alone and not sole
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)
    assert not locks.is_pinned(table, 1)
    with locks.between_turns(table) as alone, locks.sole_compactor(table) as sole:
        assert alone and sole


def test_a_pin_goes_with_its_object(table: Path) -> None:
    pins = [locks.pin(table, 2) for _ in range(2)]
    assert all(pins) and locks.is_pinned(table, 2)
    pins.pop()
    assert locks.is_pinned(table, 2)
    pins.clear()
    assert not locks.is_pinned(table, 2)


def test_a_turn_waits_for_a_clean_up_that_has_begun(table: Path) -> None:
    done = threading.Event()

    def commit() -> None:
        with locks.in_turn(table):
            done.set()

    with locks.between_turns(table) as alone:
        assert alone
        thread = threading.Thread(target=commit)
        thread.start()
        assert not done.wait(0.2)
    thread.join(10)
    assert done.is_set()


def test_readers_leave_nothing_behind(table: Path) -> None:
    (table / "_turns.lock").unlink()
    with locks.in_turn(table, committing=False):
        pass
    assert locks.pin(table, 2) is not None
    assert not (table / "_turns.lock").exists()


def test_a_version_that_is_gone_and_a_table_that_is_gone(table: Path) -> None:
    assert locks.pin(table, 7) is None and locks.is_pinned(table, 7)
    with locks.in_turn(table / "no"), locks.sole_compactor(table / "no") as sole:
        assert sole  # nothing to exclude
    with locks.between_turns(table / "no") as alone:
        assert not alone


def test_files_of_another_user_can_be_pinned_and_are_taken_for_pinned(
    shared_folder: Path, table: Path
) -> None:
    moved = shared_folder / "t.lance"
    table.rename(moved)
    with refused(moved, moved / "_versions"):
        pin = locks.pin(moved, 1)
        assert pin is not None
        with locks.between_turns(moved) as alone:
            assert not alone
        pin.release()
        assert locks.is_pinned(moved, 1) or os.geteuid() == table.parent.stat().st_uid


def test_out_of_descriptors_reading_goes_on(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    assert locks.pin(table, 2) is None
    with locks.in_turn(table, committing=False):
        pass


def test_one_process_at_a_time_sets_aside(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    other = [sys.executable, "-c", code, str(tmp_path)]
    with locks.only_one(tmp_path) as alone:
        assert alone and subprocess.run(other, capture_output=True, check=False).returncode == 1
    assert subprocess.run(other, capture_output=True, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []
    with locks.only_one(tmp_path / "nowhere") as alone:
        assert not alone


def test_one_thread_at_a_time_sets_aside(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with locks.only_one(tmp_path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
