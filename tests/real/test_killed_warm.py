"""scripts/warm_cache.py with real vLLM, killed with SIGKILL: at first, and when it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from embcache import VllmEncoderWrapper
from embcache.store import Location, Space
from embcache.tools.check import check_space
from tests.conftest import ROOT, encode

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TEXTS = [f"Sentence {i} of the corpus, {'and on it goes ' * (i % 40)}." for i in range(700)]


def start(folder: Path, model: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "warm_cache.py"), "--model", model]
    command += ["--dtype", "float32", "--enforce-eager", "--cache", str(folder / "cache")]
    return subprocess.Popen(
        [*command, "--jsonl", str(folder / "corpus.jsonl"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
        start_new_session=True,
    )


def committed(folder: Path) -> int:
    """Rows that anybody can see."""
    tables = list((folder / "cache").glob("*.lance"))
    if not tables or not any((tables[0] / "_versions").glob("*.manifest")):
        return 0
    return int(lance.dataset(str(tables[0])).count_rows())


def wait_for_rows(folder: Path, process: subprocess.Popen[str], more_than: int) -> None:
    deadline = time.monotonic() + 120
    while committed(folder) <= more_than and process.poll() is None:
        assert time.monotonic() < deadline, "no chunk was committed"
        time.sleep(0.05)


def test_kills_lose_no_committed_row(
    tmp_path: Path, model_path: str, real_encoder: Callable[..., VllmEncoderWrapper]
) -> None:
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    rng = random.Random(5)
    rows = kills = 0
    for _ in range(2):  # each start costs vLLM's imports; tests/crash has 20 without
        process = start(tmp_path, model_path)
        wait_for_rows(tmp_path, process, rows)
        time.sleep(rng.uniform(0, 2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        assert committed(tmp_path) >= rows
        rows = committed(tmp_path)
        for table in (tmp_path / "cache").glob("*.lance"):
            assert not rows or check_space(Space(Location.of(table))).ok
    assert rows > 0 and kills, "the corpus is too small for this machine"
    process = start(tmp_path, model_path, "--json")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    found: Any = json.loads(out[out.index("{") :])
    assert found["hits"] == rows and found["encoded"] == len(TEXTS) - rows
    warm = real_encoder(on_miss="raise")
    vectors = encode(warm, TEXTS)
    expected = encode(real_encoder(cache_path=None), TEXTS)
    assert np.abs(vectors - expected).max() < 1e-6
