"""Warming that is killed, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import VllmEncoderWrapper
from embcache.store import Location, Space
from embcache.tools.check import CheckReport, check_space
from tests.conftest import encode
from tests.fakes import FakeEngine, fake_vector
from tests.warm.driver import CHUNK_TEXTS, start

pytestmark = pytest.mark.slow

TEXTS = [f"text {i}" for i in range(20_000)]
KILLS = 20


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def encoded(folder: Path) -> int:
    log = folder / "log"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def checked(folder: Path) -> CheckReport | None:
    """What `check` says of the only space; None before the first commit."""
    tables = Location.of(folder / "cache").tables()
    return check_space(Space(tables[0])) if tables else None


def all_is_there(folder: Path, model: Path) -> None:
    encoder = VllmEncoderWrapper(
        str(model),
        dtype="float32",
        cache_path=folder / "cache",
        on_miss="raise",
        make_engine=lambda *_: FakeEngine(),
    )
    vectors = encode(encoder, TEXTS)
    assert vectors.tobytes() == np.stack([fake_vector(text) for text in TEXTS]).tobytes()


def finish(folder: Path, model: Path) -> Any:
    process = start(folder, model, 0.0, "--json")
    process.join(120)
    assert process.exitcode == 0, (folder / "err").read_text()
    return json.loads((folder / "out").read_text())


def test_kill_9_at_random_moments(corpus: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Every kill leaves a clean cache; all work together is less than 1.2 times one run's."""
    rng = random.Random(11)
    rows, at_work = 0, 0
    for _ in range(KILLS):
        before = encoded(tmp_path)
        process = start(tmp_path, tiny_model, 0.03)
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "err").read_text()
        at_work += encoded(tmp_path) > before
        if (found := checked(tmp_path)) is not None:
            assert found.ok and found.rows >= rows and not found.duplicates
            rows = found.rows
    assert at_work >= KILLS / 4 and 0 < rows < len(TEXTS), "this machine needs other pauses"
    rest = finish(tmp_path, tiny_model)
    assert rest["hits"] == rows and rest["encoded"] == len(TEXTS) - rows
    assert len(TEXTS) <= encoded(tmp_path) < 1.2 * len(TEXTS)
    found = checked(tmp_path)
    assert found is not None and found.ok and found.rows == len(TEXTS)
    all_is_there(tmp_path, tiny_model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_says_how_to_go_on_and_exits_with_130(
    number: int, corpus: Path, tmp_path: Path, tiny_model: Path
) -> None:
    process = start(tmp_path, tiny_model, 0.02)
    time.sleep(0.7)
    os.kill(process.pid or 0, number)
    process.join(60)
    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert process.exitcode == 130, out + err
    assert "stopping after the chunk in flight" in err and "goes on from here" in out
    assert "Traceback" not in err
    [done] = re.findall(r"([\d,]+) encoded", out)
    committed = int(done.replace(",", ""))
    assert committed == encoded(tmp_path) < len(TEXTS) and committed % CHUNK_TEXTS == 0 < committed
    rest = finish(tmp_path, tiny_model)
    assert rest["encoded"] == len(TEXTS) - committed and rest["hits"] == committed
    all_is_there(tmp_path, tiny_model)
