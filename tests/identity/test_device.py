"""Whether there is a device, and why there may be none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embcache.identity import device


@pytest.mark.parametrize(
    ("device_type", "count", "there"),
    [
        ("", 1, False),  # vLLM found no platform
        ("cpu", 0, True),
        ("cuda", 1, True),
        ("cuda", 0, False),  # vLLM looks past CUDA_VISIBLE_DEVICES
        ("tpu", 0, True),  # torch cannot count them
    ],
)
def test_is_there(
    monkeypatch: pytest.MonkeyPatch, device_type: str, count: int, there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert device.is_there(device_type) is there


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torch is a CUDA build; the folder is this machine's /proc/driver/nvidia, and is missing."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "nvidia")
    for name in device._VISIBLE:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "nvidia"


def test_no_driver(cuda_build: Path) -> None:
    assert "no NVIDIA driver is loaded" in device.why_none()
    assert "as on a login node" in device.why_none()


def test_no_gpu_in_a_container(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_build.mkdir()
    monkeypatch.setattr(device, "_NODES", "no-such-device*")
    assert "a container without `--gpus`" in device.why_none()


def test_a_driver_that_does_not_answer(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_build.mkdir()
    monkeypatch.setattr(device, "_NODES", "null")
    assert "nvidia-smi" in device.why_none()


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_hidden(cuda_build: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert device.why_none().startswith(f"CUDA_VISIBLE_DEVICES={value!r} leaves none")


def test_builds_of_torch(monkeypatch: pytest.MonkeyPatch, cuda_build: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "sees no GPU of its kind" in device.why_none()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "xpu", None, raising=False)
    assert f"is a CPU build ({torch.__version__})" in device.why_none()


def test_the_state_says_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [device.device_state()]
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "VLLM_TARGET_DEVICE"):
        monkeypatch.setenv(name, "0")
        states.append(device.device_state())
    assert len(set(states)) == 4
