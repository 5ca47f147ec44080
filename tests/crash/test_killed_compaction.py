"""SIGKILL in the middle of automatic compactions, several processes at once: nothing is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embcache.store import Database, Space
from embcache.tools.check import check_space
from tests.conftest import ROOT
from tests.crash import compacted_writer
from tests.crash.compacted_writer import IDENTITY, rows
from tests.fakes import fake_vector

ROUNDS = 6
WRITERS = 2


def start(path: Path, name: str, count: int = 100_000) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", compacted_writer.__name__, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def opened(path: Path) -> Space:
    return Database(path, writable=True).space(IDENTITY, "m", "v", compact_automatically=False)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_compactions(tmp_path: Path) -> None:
    """Beside a reader that never sees an acknowledged text missing, nor an error."""
    rng = random.Random(13)
    reader = opened(tmp_path)
    acknowledged: list[str] = []
    for number in range(ROUNDS):
        writers = [start(tmp_path, f"{number}-{i}") for i in range(WRITERS)]
        until = time.monotonic() + rng.uniform(1.0, 3.0)
        while time.monotonic() < until:
            snapshot = reader.refresh()
            wanted = rows(acknowledged) if acknowledged else None
            if wanted is not None:
                values, failed = snapshot.read_all(snapshot.find(wanted.keys), wanted.keys)
                assert not failed.any() and (values == wanted.values).all()
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            out, _ = writer.communicate()
            acknowledged += [line for line in out.splitlines() if line]
    space = opened(tmp_path)
    assert len(acknowledged) > 50, "this machine needs longer rounds"
    report = check_space(space)
    assert report.ok and report.rows >= len(acknowledged)
    wanted = rows(acknowledged)
    snapshot = space.refresh()
    values, failed = snapshot.read_all(snapshot.find(wanted.keys), wanted.keys)
    expected = np.stack([fake_vector(text) for text in acknowledged])
    assert not failed.any() and values.tobytes() == expected.tobytes()
    assert len(space.open().fragments) < len(acknowledged) / 2, "nothing was compacted"


@pytest.mark.slow
def test_several_writers_compact_one_space_and_leave_no_garbage(tmp_path: Path) -> None:
    writers = [start(tmp_path, f"{i}", 100) for i in range(3)]
    for writer in writers:
        _, said = writer.communicate(timeout=300)
        assert writer.returncode == 0 and "Error" not in said and "Traceback" not in said
    space = opened(tmp_path)
    assert len(space.refresh()) == 300 and check_space(space).ok
    assert len(space.open().fragments) < 60
    assert space.location.size() < 5 * 300 * 100 + 2**19
