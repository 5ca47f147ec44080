from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embcache import ConfigError, EngineError, EngineNotInstalledError
from embcache.identity import device, dtype
from embcache.identity.dtype import AutoDtype
from embcache.identity.identity import Identity
from embcache.identity.machine_memo import Memo
from embcache.identity.weights import ModelSource

IDENTITY = Identity("organization/name", "r", "auto")
SOURCE = ModelSource("organization/name", "organization/name", "r", False)


def auto(tmp_path: Path, **arguments: Any) -> AutoDtype:
    return AutoDtype(IDENTITY, SOURCE, arguments, Memo(tmp_path / "memo.sqlite"))


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "vllm_version", lambda: None)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A vllm that answers bfloat16; the questions."""
    asked: list[dict[str, Any]] = []

    def run(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        asked.append(json.loads(kwargs["input"]))
        return subprocess.CompletedProcess([], 0, "noise\nembcache-dtype=bfloat16\n", "")

    monkeypatch.setattr(dtype, "vllm_version", lambda: "vllm 1.0")
    monkeypatch.setattr(dtype.subprocess, "run", run)
    return asked


@pytest.mark.usefixtures("no_vllm")
class TestWithoutVllm:
    def test_it_is_what_the_cache_holds(self, tmp_path: Path) -> None:
        assert auto(tmp_path).settle(["float16"]) == "float16"

    def test_several_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"bfloat16, float16\. Choose one, dtype='bfloat16'"):
            auto(tmp_path).settle(["float16", "bfloat16"])

    def test_none_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(EngineNotInstalledError, match=r"holds nothing .*pip install"):
            auto(tmp_path).settle([])


def test_asked_once_and_remembered(tmp_path: Path, probes: list[Any]) -> None:
    assert auto(tmp_path, trust_remote_code=True).settle(["float16"]) == "bfloat16"
    assert auto(tmp_path, trust_remote_code=True).settle(["float16"]) == "bfloat16"
    assert probes == [
        {
            "model": SOURCE.name,
            "revision": "r",
            "convert": "embed",
            "arguments": {"trust_remote_code": True},
        }
    ]


def test_not_asked_where_nothing_can_be_hit(tmp_path: Path, probes: list[Any]) -> None:
    assert auto(tmp_path).settle([]) is None and probes == []
    auto(tmp_path).remember("float32")
    assert auto(tmp_path).settle([]) == "float32"


def test_another_vllm_or_device_is_asked_again(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    auto(tmp_path).settle(["float16"])
    monkeypatch.setattr(dtype, "vllm_version", lambda: "vllm 2.0")
    auto(tmp_path).settle(["float16"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    auto(tmp_path).settle(["float16"])
    assert len(probes) == 3


def test_vllm_that_cannot_run_here(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        dtype.subprocess,
        "run",
        lambda *a, **k: subprocess.CompletedProcess([], 1, "", "x\nRuntimeError: no device\n"),
    )
    with caplog.at_level(logging.WARNING):
        assert auto(tmp_path).settle(["float16"]) == "float16"
    assert "no device" in caplog.text and "Going on with the cached dtype" in caplog.text
    with pytest.raises(EngineError, match=r"RuntimeError: no device\. Name a dtype"):
        auto(tmp_path).settle(["float16", "float32"])


@pytest.mark.engine
def test_the_real_vllm_answers_without_being_imported_here(tmp_path: Path, model_path: str) -> None:
    before = "vllm" in sys.modules
    source = ModelSource(model_path, "local", "hash", True)
    real = AutoDtype(IDENTITY, source, {"trust_remote_code": True}, Memo(tmp_path / "m.sqlite"))
    assert real.settle(["float32"]) == "float16"  # float32 weights, pooling model
    assert ("vllm" in sys.modules) == before


def test_without_a_device_the_cache_decides(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    found: list[str] = ["no device"]

    def run(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        probes.append(kwargs)
        return subprocess.CompletedProcess([], 0, f"embcache-dtype={found[0]}\n", "")

    monkeypatch.setattr(dtype.subprocess, "run", run)
    caplog.set_level(logging.INFO)
    assert auto(tmp_path).settle(["float32"]) == "float32"
    assert "vllm 1.0 finds no GPU here" in caplog.text
    assert auto(tmp_path).settle(["bfloat16"]) == "bfloat16"
    with pytest.raises(ConfigError, match=r"finds no GPU here .* bfloat16, float32\. Choose one"):
        auto(tmp_path).settle(["float32", "bfloat16"])
    assert auto(tmp_path).settle([]) is None  # the engine says what is missing
    assert len(probes) == 1  # remembered, a warm run must not wait for vllm's import

    monkeypatch.setattr(device.platform, "node", lambda: "gpu-node")  # with the same home
    found[0] = "float16"
    assert auto(tmp_path).settle(["float32"]) == "float16"


def test_a_job_without_a_gpu_on_the_same_node(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but torch's count tells it from the job before, whose answer is remembered."""
    import torch

    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    auto(tmp_path).settle(["float32"])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    auto(tmp_path).settle(["float32"])
    assert len(probes) == 2


@pytest.mark.engine
def test_the_real_vllm_without_a_device(
    tmp_path: Path, model_path: str, vllm_for_gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked nevertheless, it says float16."""
    for name, value in vllm_for_gpus.items():
        monkeypatch.setenv(name, value)
    source = ModelSource(model_path, "local", "hash", True)
    real = AutoDtype(IDENTITY, source, {}, Memo(tmp_path / "m.sqlite"))
    assert real.settle(["float32"]) == "float32"
