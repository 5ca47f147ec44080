"""vLLM's compiled models on CPU: found again by the next process, on the same kind of processor."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

PROCESSOR = "embcache_processor"
"""Key in vLLM's `additional_config`, which is part of the name of a compiled model's file."""

_CPUINFO = Path("/proc/cpuinfo")
_DECIDES = ("model name", "flags", "Features", "CPU part")  # x86 has the first two, ARM the others


@contextmanager
def compiled_models_found() -> Iterator[None]:
    """Have vLLM load the compiled model that an earlier process left, instead of compiling again.

    vLLM 0.32 keeps what it has compiled in VLLM_CACHE_ROOT. On CPU each start reads it and then
    trips over its last step, "'function' object has no attribute 'finalize_loading'", which the
    compiler for CPU has no need of: so every start compiles, 12 s of 19 for a small model. Here the
    loaded function gets that step, doing nothing. Where anything is otherwise, vLLM compiles.
    """
    import torch

    load = getattr(torch.compiler, "load_compiled_function", None)
    if load is None:
        yield
        return

    def load_with_last_step(*args: Any, **kwargs: Any) -> Any:
        function = load(*args, **kwargs)
        compiled = getattr(getattr(function, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = _nothing_left_to_do
        return function

    torch.compiler.load_compiled_function = load_with_last_step
    try:
        yield
    finally:
        torch.compiler.load_compiled_function = load


def told_of_processor(additional_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Have compiled models named by the processor: another one may not have its instructions.

    Nodes of a cluster share a home, and neither vLLM nor torch looks at the processor when a
    compiled model is loaded.

    Args:
        additional_config: vLLM's argument of that name, as the user gave it; None for none.
    """
    return {**(additional_config or {}), PROCESSOR: processor()}


def processor() -> str:
    """A digest of what decides what is compiled for this machine: model and instruction sets."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    found = sorted({line for line in lines if line.startswith(_DECIDES)})
    said = "\n".join((platform.machine(), platform.processor(), *found))
    return xxhash.xxh3_64_hexdigest(said.encode())


def _nothing_left_to_do(_: object) -> None:
    """What `finalize_loading` is of a function that is complete as loaded."""
