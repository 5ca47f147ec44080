"""Warming that is killed, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import VllmEncoderWrapper, encoders
from tests.conftest import ROOT, encode
from tests.fakes import FakeEngine, fake_vector

TEXTS = [f"text {i}" for i in range(20_000)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def start(folder: Path, model: Path, seconds: float = 0.003, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.warm.driver", str(folder / "log"), str(seconds)]
    command += ["--model", str(model), "--dtype", "float32", "--cache", str(folder / "cache")]
    process = subprocess.Popen(
        [*command, "--jsonl", str(folder / "corpus.jsonl"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def encoded(folder: Path) -> int:
    return sum(map(int, (folder / "log").read_text().split()))


def all_is_there(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "VllmEngine", lambda *_: FakeEngine())
    encoder = VllmEncoderWrapper(
        str(model), dtype="float32", cache_path=folder / "cache", on_miss="raise"
    )
    vectors = encode(encoder, TEXTS)
    assert vectors.tobytes() == np.stack([fake_vector(text) for text in TEXTS]).tobytes()


def test_kill_9_at_random_moments(
    corpus: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All work over all restarts together is less than 1.2 times one run's."""
    rng = random.Random(11)
    kills = 0
    while kills < 8:
        process = start(tmp_path, tiny_model, 0.02)
        time.sleep(rng.uniform(0.1, 0.6))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills >= 4, "the machine is too fast for this test"
    process = start(tmp_path, tiny_model, 0.0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert len(TEXTS) <= encoded(tmp_path) < 1.2 * len(TEXTS)
    all_is_there(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_says_how_to_go_on_and_exits_with_130(
    number: int, corpus: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path, tiny_model, 0.02)
    time.sleep(0.7)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "stopping after the chunk in flight" in err and "goes on from here" in out
    assert "Traceback" not in err
    [done] = re.findall(r"([\d,]+) encoded", out)
    committed = int(done.replace(",", ""))
    assert 0 < committed == encoded(tmp_path) < len(TEXTS)
    rest: Any = json.loads(finish(tmp_path, tiny_model))
    assert rest["encoded"] == len(TEXTS) - committed and rest["hits"] == committed
    all_is_there(tmp_path, tiny_model, monkeypatch)


def finish(folder: Path, model: Path) -> str:
    process = start(folder, model, 0.0, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out
