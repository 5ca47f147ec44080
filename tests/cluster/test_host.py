from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from embcache.cluster import host
from embcache.cluster.host import cores, pin


def siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lists: str) -> None:
    """A machine whose CPUs share their cores so."""
    for cpu, text in enumerate(lists):
        if text:
            (tmp_path / f"cpu{cpu}").write_text(text)
    monkeypatch.setattr(host, "_SIBLINGS", str(tmp_path / "cpu{}"))
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: set(range(len(lists))))


def test_one_cpu_of_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings(tmp_path, monkeypatch, "0,2", "1,3", "0,2", "1,3")
    assert cores() == [0, 1]


def test_cores_of_a_machine_that_hides_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    siblings(tmp_path, monkeypatch, "", "", "")
    assert cores() == [0, 1, 2]


def test_of_a_core_that_is_not_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings(tmp_path, monkeypatch, "0,2", "1,3", "0,2", "1,3")
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: {2, 3})
    assert cores() == [2, 3]


@pytest.mark.parametrize(
    ("cpus", "slot", "of", "share"),
    [
        ([0, 1, 2, 3], 0, 2, [0, 2]),
        ([0, 1, 2, 3], 1, 2, [1, 3]),
        ([0, 1, 2, 3], 3, 2, [1, 3]),  # a replica that took the place of a dead one
        ([0, 1, 2], 1, 2, [1]),
        ([5], 2, 3, [5]),  # more replicas than cores
        ([4, 6], 0, 1, [4, 6]),
    ],
)
def test_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], slot: int, of: int, share: list[int]
) -> None:
    assert pinned(monkeypatch, cpus, slot, of) == share
    assert os.environ["OMP_NUM_THREADS"] == str(len(share))


def test_all_shares_are_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [pinned(monkeypatch, list(range(8)), slot, 3) for slot in range(3)]
    assert sorted(cpu for share in shares for cpu in share) == list(range(8))


def pinned(monkeypatch: pytest.MonkeyPatch, cpus: list[int], slot: int, of: int) -> list[int]:
    """The cores that a process would be pinned to."""
    seen: list[list[int]] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray does
    monkeypatch.setattr(host, "cores", lambda: cpus)
    monkeypatch.setattr(host.os, "sched_setaffinity", lambda _, share: seen.append(share))
    pin(slot, of)
    return seen[0]


_PARENT = """
import os, subprocess, sys, time
from embcache.cluster.host import end_children_with
watch = end_children_with(os.getpid())
child = subprocess.Popen(
    [sys.executable, "-c", "import subprocess, time; "
     "print(subprocess.Popen(['sleep', '300']).pid, flush=True); time.sleep(300)"],
    stdout=subprocess.PIPE, text=True, start_new_session=True,
)
print(watch.pid, child.pid, child.stdout.readline().strip(), flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_children_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    watch, *children = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
    time.sleep(2.5)  # children are looked for once a second
    assert watch.is_running() and all(child.is_running() for child in children)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([watch, *children], timeout=20)
    assert len(gone) == 3 and not alive
