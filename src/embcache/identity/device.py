"""What vLLM would compute on here, as far as dtype "auto" and errors need to know."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_TARGET = ("VLLM_TARGET_DEVICE", "VLLM_PLUGINS")
_DRIVER = Path("/proc/driver/nvidia")
_NODES = "nvidia[0-9]*"


def device_state() -> str:
    """This host, its NVIDIA GPUs and what of them this process sees.

    What vLLM's choice of dtype depends on besides its version: a login node and a GPU node share a
    home, and so do a job with a GPU and one without on the same node.
    """
    import torch  # mteb has imported it before

    gpus = sorted(
        line.strip()
        for file in _DRIVER.glob("gpus/*/information")
        for line in file.read_text().splitlines()
        if line.startswith("Model:")
    )
    said = [f"{name}={os.environ[name]}" for name in _VISIBLE + _TARGET if name in os.environ]
    seen = f"torch {torch.__version__} sees {torch.accelerator.device_count()}"
    return "|".join((platform.node(), platform.machine(), *gpus, *said, seen))


def is_there(device_type: str) -> bool:
    """Whether there is a device of a kind.

    Args:
        device_type: `current_platform.device_type` of vLLM: "cpu", "cuda" (AMD's too), ...; empty
            where it found no platform at all.

    Returns:
        False where there is none. vLLM itself looks past CUDA_VISIBLE_DEVICES: it takes a GPU for
        there that this process cannot use. True for kinds that torch cannot count (TPUs).
    """
    import torch

    if not device_type:
        return False
    count = getattr(getattr(torch, device_type, None), "device_count", None)
    return count is None or count() > 0


def why_none() -> str:
    """Why no GPU may be found, in words that end no sentence."""
    import torch

    if not any(getattr(torch.version, build, None) for build in ("cuda", "hip", "xpu")):
        return f"the torch beside it is a CPU build ({torch.__version__})"
    hidden = [f"{name}={os.environ[name]!r}" for name in _VISIBLE if name in os.environ]
    if hidden:
        return f"{', '.join(hidden)} leaves none of them, or there is none"
    if getattr(torch.version, "cuda", None) is None:
        return f"torch is {torch.__version__}, and sees no GPU of its kind"
    if not _DRIVER.exists():
        return f"no NVIDIA driver is loaded ({_DRIVER} is missing), as on a login node"
    if not any(Path("/dev").glob(_NODES)):
        return (
            f"the NVIDIA driver is loaded, but this process has no GPU (/dev/{_NODES} is missing): "
            "a container without `--gpus`, or a job without a GPU"
        )
    return "the NVIDIA driver does not answer; does `nvidia-smi` show a GPU"
