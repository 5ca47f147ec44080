"""Whole processes, as users run them: a real model, a real cache, vllm there or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_python

pytestmark = pytest.mark.engine

SCRIPT = """
import logging, mteb, numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader
from embcache import VllmEncoderWrapper

texts = ["a text", "", "another text", "a text", "emoji \\U0001f600"]
texts += [f"text {{i}}" for i in range(40)]
for arguments in {arguments!r}:
    encoder = VllmEncoderWrapper({model!r}, cache_path={cache!r}, **arguments)
    vectors = encoder.encode(
        DataLoader(Dataset.from_dict({{"text": texts}}), batch_size=8),
        task_metadata=mteb.get_task("STS13").metadata,
        hf_split="test", hf_subset="default", show_progress_bar=False,
    )
    stats = encoder.stats
    print(stats.hits, stats.encoded, encoder.identity.dtype, vectors.tobytes().hex(), end=" ")
    print(any(sys.modules.get(name) for name in ("vllm", "lancedb")))
"""


def run(
    model: str,
    cache: Path,
    *,
    blocked: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    **arguments: object,
) -> list[str]:
    """What one encoder said, in a process of its own."""
    return run_each(model, cache, [arguments], blocked=blocked, env=env)[0]


def run_each(
    model: str,
    cache: Path,
    arguments: list[dict[str, object]],
    *,
    blocked: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> list[list[str]]:
    """What each of several encoders said, in one process."""
    code = SCRIPT.format(model=model, cache=str(cache), arguments=arguments)
    lines = run_python(code, blocked=blocked, **(env or {})).splitlines()
    return [line.split()[-5:] for line in lines[-len(arguments) :]]


def test_cold_then_warm_without_vllm(model_path: str, tmp_path: Path) -> None:
    """float32, engine as users get it (compiled); then a machine that has no vllm."""
    cold = run(model_path, tmp_path / "cache", dtype="float32")
    assert cold[:3] == ["0", "44", "float32"] and cold[4] == "True"
    warm = run(model_path, tmp_path / "cache", dtype="float32")
    assert warm[:2] == ["44", "0"] and warm[3:] == [cold[3], "False"]
    without = run(model_path, tmp_path / "cache", dtype="auto", blocked=("vllm",))
    assert without == ["44", "0", "float32", cold[3], "False"]


def test_hub_name_and_auto_dtype_with_the_hub_out_of_reach(model_path: str, tmp_path: Path) -> None:
    """What the engine really uses; remembered; the same space as when it is named."""
    commit = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    folder = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / commit).symlink_to(model_path)
    env = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:1",  # nobody listens there
    }
    name, cache = "sentence-transformers/all-MiniLM-L6-v2", tmp_path / "cache"
    cold = run(name, cache, env=env, enforce_eager=True, max_model_len=16)
    assert cold[1:3] == ["44", "float16"]
    (space,) = cache.glob("*.lance")
    assert space.name.startswith("sentence-transformers--all-MiniLM-L6-v2--float16--")
    each: list[dict[str, object]] = [{}, {"dtype": "half"}, {"revision": commit}]
    warm = run_each(name, cache, [{"max_model_len": 16, **one} for one in each], env=env)
    assert warm == [["44", "0", "float16", cold[3], "False"]] * 3
