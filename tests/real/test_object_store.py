"""A real model evaluated into an object store, and again out of it; whole processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_python
from tests.object_store import ObjectStore, Remote

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SCRIPT = """
import json, mteb
import numpy as np
from embcache import VllmEncoderWrapper
from tests.real.tasks import PROMPTS, DocstringBodies

seen, encode = [], VllmEncoderWrapper.encode
def keep(self, *args, **kwargs):
    vectors = encode(self, *args, **kwargs)
    seen.append(vectors.tobytes().hex())
    return vectors
VllmEncoderWrapper.encode = keep
encoder = VllmEncoderWrapper({model!r}, prompt_dict=PROMPTS, dtype="float32", **{arguments!r})
result = mteb.evaluate(encoder, DocstringBodies(), cache=None, show_progress_bar=False)
stats = encoder.total
print(json.dumps(dict(
    vectors=seen, score=result[0].get_score(), hits=stats.hits, encoded=stats.encoded,
    requests=stats.requests, bytes=stats.bytes, vllm="vllm" in sys.modules, said=str(stats),
)))
"""


def evaluate(model: str, env: dict[str, str], **arguments: Any) -> dict[str, Any]:
    code = SCRIPT.format(model=model, arguments=arguments)
    found: dict[str, Any] = json.loads(run_python(code, **env).splitlines()[-1])
    return found


def test_evaluated_into_a_store_and_out_of_it(
    model_path: str, object_store: ObjectStore, remote: Remote
) -> None:
    """Cold; then, in a new process, everything is there, bit for bit."""
    env = object_store.environment
    cold = evaluate(model_path, env, cache_path=remote.url, enforce_eager=True)
    assert cold["encoded"] == 240 and cold["vllm"] and cold["requests"] > 10
    warm = evaluate(model_path, env, cache_path=remote.url, on_miss="raise")
    assert warm["vectors"] == cold["vectors"] and warm["score"] == cold["score"]
    assert warm["hits"] == 240 and not warm["encoded"] and not warm["vllm"]
    assert 0 < warm["requests"] <= 40 and warm["bytes"] > 240 * 384 * 4
    assert f"{warm['requests']} requests" in warm["said"]


def test_upstream_then_alone(
    model_path: str, object_store: ObjectStore, remote: Remote, tmp_path: Path
) -> None:
    """A laptop without vLLM replays what the team's cache has, and then without it."""
    env = object_store.environment
    cold = evaluate(model_path, env, cache_path=remote.url, enforce_eager=True)
    mine = {"cache_path": str(tmp_path / "cache"), "on_miss": "raise"}
    first = evaluate(model_path, env, upstream=remote.url, **mine)
    assert first["vectors"] == cold["vectors"] and not first["vllm"]
    assert "240 upstream" in first["said"] and first["requests"] > 0
    object_store.stop()
    try:
        again = evaluate(model_path, {}, **mine)
    finally:
        object_store.start()
    assert again["vectors"] == cold["vectors"] and again["hits"] == 240 and not again["vllm"]
