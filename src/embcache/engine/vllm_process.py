"""What vLLM needs of this process and this machine, and what it does to them."""

from __future__ import annotations

import functools
import gc
import os
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from embcache.errors import EngineError
from embcache.identity.device import is_there, why_none

_CPU_SHARE_OF_FREE_MEMORY = 0.5
_READS_MODELS = ("vllm.transformers_utils.", "vllm.tokenizers.", "vllm.renderers.")
_LOOK_S = 0.5  # how often it is looked whether vLLM's process is alive
_CACHED = type(functools.cache(len))


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Give the caller back what an engine's start changes in this process.

    vLLM seeds Python, NumPy and torch: a task that draws from the global generators would score
    differently in a cold run, which starts an engine, than in a warm one, which does not. And it
    sets LD_PRELOAD, for its own workers, which every later subprocess would inherit.
    """
    import torch

    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    preload = os.environ.get("LD_PRELOAD")
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        os.environ.pop("LD_PRELOAD", None)
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect no garbage meanwhile: an import makes none, and a million objects are looked at."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Keep what is there already from the collections of garbage that an engine's start makes.

    It makes six, each through all objects of mteb, torch and vLLM: 2 of 6 s. At its end vLLM sets
    the heap of its engine's process aside itself (`gc.freeze`) and, when it is shut down, brings it
    back. So this is for an engine in this process, and nothing is brought back here unless the
    start fails; where somebody else has set a heap aside before, it is left alone.
    """
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0" or gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    except BaseException:
        gc.unfreeze()
        raise


@contextmanager
def llvmlite_hidden() -> Iterator[None]:
    """Keep an object out of sight that vLLM's start on CPU stumbles over.

    vLLM 0.32 asks every object in every imported module for its `__dict__`, in search of kernels.
    That of `llvmlite.binding.ffi.lib` is no dict, so where numba is imported (umap and librosa
    do), the start would end in "'_lib_fn_wrapper' object has no attribute 'get'".
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


@contextmanager
def woken_if_killed(llm: Any) -> Iterator[None]:
    """Have vLLM raise, not wait for ever, where its engine's process is killed meanwhile.

    vLLM 0.32 notices that a process is gone (the kernel's out-of-memory killer takes it, say), and
    marks the engine as dead; but the thread that waits for outputs is not woken.

    Args:
        llm: `vllm.LLM`, whose engine may be in this process.
    """
    core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    waiting, resources = getattr(core, "outputs_queue", None), getattr(core, "resources", None)
    if waiting is None or resources is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_S):
            if getattr(resources, "engine_dead", False):
                waiting.put_nowait(RuntimeError("vLLM's engine process died unexpectedly"))
                return

    threading.Thread(target=watch, name="embcache-vllm-watcher", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def forget_models() -> None:
    """Have vLLM read a model's files again that it has read in this process before.

    vLLM 0.32 keeps poolings, Sentence Transformers configurations and tokenizers by path for the
    life of the process. A second engine for a folder whose files have changed since would embed
    with the old pooling, and its vectors would be cached as the new one's.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_READS_MODELS):
            for value in list(vars(module).values()):
                if isinstance(value, _CACHED):
                    value.cache_clear()


def prepare_environment() -> None:
    """Set the variables that vLLM reads from the environment, unless the user has set them."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # as mteb
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # else pages before the first text
    # vLLM keeps one core back on CPU: half of a laptop with two.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")


def check_device(version: str) -> None:
    """Refuse to start where there is nothing to run on, before vLLM loads anything.

    vLLM itself goes on without a device, until torch says "Device string must not be empty".

    Args:
        version: Package and version of vllm, for the message.

    Raises:
        EngineError: The build is for GPUs, and this process sees none.
    """
    from vllm.platforms import current_platform

    if is_there(current_platform.device_type):
        return
    raise EngineError(
        f"There are texts to encode, and no GPU: {version} is a build for GPUs, and this process "
        f"sees none ({why_none()}). Run it where a GPU is, or install the build for CPU with the "
        "README's lines; a run in which every text is cached needs no GPU."
    )


def cannot_compile() -> str | None:
    """Find out whether torch.compile would fail here on CPU.

    Returns:
        Why it would fail, in words for a message; None if nothing speaks against it.
    """
    import torch

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "No C++ compiler found"
    if any(character.isspace() for character in torch.__file__):
        # Its include folders go to the compiler unquoted.
        return f"torch lies in a path with spaces ({torch.__file__}) and cannot compile there"
    return None


def attention_is_slow(dtype: object) -> bool:
    """Whether Sentence Transformers is faster on long texts on this processor, as was measured.

    With AVX2 and no AVX-512, in float32: 13% at 200 to 250 tokens, where vLLM's attention has half
    of the speed of torch's. Nothing is known of other processors and dtypes.
    """
    import torch

    return dtype == "float32" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def cpu_memory_share() -> float:
    """The `gpu_memory_utilization` that suits a CPU: half of the system memory that is free.

    vLLM reserves this share of the *total* memory on CPU, and refuses to start if less is free. An
    encoder uses almost none of it; a decoder that embeds fills it with its KV cache, unless
    `kv_cache_memory_bytes` says otherwise.

    Returns:
        A share of the total memory, from 0 to 1.
    """
    import psutil  # a requirement of vllm

    memory = psutil.virtual_memory()
    share = _CPU_SHARE_OF_FREE_MEMORY * memory.available / memory.total
    return float(np.floor(share * 1000) / 1000)
