"""scripts/warm_cache.py on Ray with real vLLM: two replicas at once, and then mteb without any."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embcache import Cache, VllmEncoderWrapper
from embcache.tools.check import check_space
from tests.conftest import ROOT, encode, run_python
from tests.real.tasks import PROMPTS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
]
EVALUATE = """
import json, mteb
from embcache import VllmEncoderWrapper
from tests.real.tasks import PROMPTS, DocstringBodies

encoder = VllmEncoderWrapper(
    {model!r}, prompt_dict=PROMPTS, dtype="float32", cache_path={cache!r}, on_miss="raise"
)
mteb.evaluate(encoder, DocstringBodies(), cache=None, show_progress_bar=False)
print(json.dumps([encoder.total.hits, encoder.total.encoded]))
"""


def made_up(count: int) -> list[str]:
    rng = random.Random(7)
    return [f"{i} {' '.join(rng.choices(WORDS, k=rng.randint(1, 60)))}" for i in range(count)]


def test_two_replicas_at_once_and_then_mteb(
    tmp_path: Path, model_path: str, real_encoder: Callable[..., VllmEncoderWrapper]
) -> None:
    """Files of this machine, read on the cluster, and a task, which only the driver can load."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    texts = made_up(1100)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, str(ROOT / "scripts" / "warm_cache.py"), "--model", model_path]
    command += ["--dtype", "float32", "--enforce-eager", "--cache", str(tmp_path / "cache")]
    command += ["--jsonl", str(corpus), "--task", "tests.real.tasks:DocstringBodies"]
    command += ["--prompt-dict", json.dumps(PROMPTS), "--json"]
    command += ["--engine", "ray", "--replicas", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)
    assert stats["committed"] == stats["encoded"] and not stats["hits"]
    shares = [one["encoded"] for one in stats["replicas"]]
    assert len(shares) == 2 and min(shares) > 0, done.stdout
    assert sum(shares) == stats["encoded"] > len(texts)
    assert "replicas 2" in done.stderr and "raylet" not in done.stderr

    [space] = Cache(tmp_path / "cache").spaces()
    report = check_space(space._space)
    assert report.ok and report.rows == stats["encoded"]
    cached = encode(real_encoder(cache_path=tmp_path / "cache", on_miss="raise"), texts)
    alone = encode(real_encoder(cache_path=tmp_path / "alone", dtype="float32"), texts)
    assert np.abs(cached - alone).max() < 1e-5

    answer = run_python(EVALUATE.format(model=model_path, cache=str(tmp_path / "cache")))
    assert json.loads(answer.splitlines()[-1]) == [240, 0]
