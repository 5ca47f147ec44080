"""SIGKILL at random moments, and writers at the same time: what was acknowledged stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import Database
from tests.conftest import ROOT
from tests.crash import writer
from tests.fakes import FakeEngine, fake_vector

TEXTS = 20_000  # more than a fast machine commits before the kills


def start(path: Path, count: int = TEXTS, first: int = 0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", writer.__name__, str(path), str(count), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def finish(path: Path, texts: list[str], **kwargs: Any) -> tuple[np.ndarray, FakeEngine]:
    engine = FakeEngine(batch_size=500)
    space = Database(path, writable=True).space(writer.IDENTITY, "m", "v", store_text=True)
    vectors, _ = Pipeline(engine, writer.IDENTITY, space, **kwargs).encode(
        TextRequest(texts=texts, show_progress=False)
    )
    return vectors, engine


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(7)
    acknowledged = 0
    for _ in range(5):
        process = start(tmp_path)
        time.sleep(rng.uniform(0.02, 0.7))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        done = [line for line in out.split() if line.isdigit()]
        acknowledged += sum(map(int, done))
    assert 0 < acknowledged < TEXTS, "the kills were all too early or too late"
    vectors, engine = finish(tmp_path, writer.texts(TEXTS))
    # At most the chunk whose commit was not acknowledged is there beyond what we know of.
    assert TEXTS - acknowledged - 5 * writer.CHUNK <= len(engine.encoded) <= TEXTS - acknowledged
    expected = np.stack([fake_vector(text) for text in writer.texts(TEXTS)])
    assert vectors.tobytes() == expected.tobytes()
    again, engine = finish(tmp_path, writer.texts(TEXTS))
    assert not engine.encoded and again.tobytes() == vectors.tobytes()


@pytest.mark.slow
def test_two_processes_into_one_cache(tmp_path: Path) -> None:
    """From nothing, at the same time, over texts that overlap by half."""
    processes = [start(tmp_path, 1500, first) for first in (0, 750)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.endswith("done\n")
    texts = writer.texts(2250)
    vectors, engine = finish(tmp_path, texts)
    assert not engine.encoded
    assert (vectors == np.stack([fake_vector(text) for text in texts])).all()


def test_disk_full(tmp_path: Path) -> None:
    """A tmpfs of 2 MB where mounting is allowed; rows committed before stay."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        from embcache import CacheError

        with pytest.raises(CacheError, match=r"No space left on device.*Rows committed before"):
            finish(small, writer.texts(60_000), on_write_error="raise")
        space = Database(small, writable=False).space(writer.IDENTITY, "m", "v", store_text=True)
        assert len(space.refresh()) > 0
        texts = writer.texts(60_000)
        vectors, _ = finish(small, texts)
        assert (vectors[::7] == np.stack([fake_vector(text) for text in texts[::7]])).all()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # the space is still open
