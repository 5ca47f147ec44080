from __future__ import annotations

import re
import weakref

import pytest

from embcache import EngineError
from embcache.engine.failures import (
    died,
    let_go,
    memory_advice,
    out_of_memory,
    said,
    too_little_memory,
)
from embcache.engine.mteb_model import ModelEngine
from embcache.engine.vllm import VllmEngine


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("XPU out of memory"), True),
        (RuntimeError("OOM when allocating tensor"), True),
        (RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer"), True),
        (RuntimeError("UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"), True),
        (RuntimeError("cudaErrorMemoryAllocation"), True),
        (RuntimeError("could not allocate 4096 bytes"), True),
        (RuntimeError("memory allocation of 1024 bytes failed"), True),
        (RuntimeError("Insufficient GPU memory to complete the request"), True),
        (ExceptionGroup("two workers", [KeyError("a"), RuntimeError("HIP out of memory")]), True),
        (ExceptionGroup("two workers", [KeyError("out of memory")]), False),
        (RuntimeError("Error code: 413 - Request too large"), False),
        (RuntimeError("the room is empty"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: quota exceeded"), False),  # of an endpoint: money
        (KeyError("out of memory"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) == expected
    assert out_of_memory(raised(EngineError(f"vLLM failed: {error}"), error)) == expected


def test_a_cycle_of_causes_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert not out_of_memory(first) and not died(first)


def test_what_vllm_says_at_its_start() -> None:
    for words in (
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "Free memory on device cuda:0 (3/80 GiB) on startup is less than desired GPU memory",
        "Available memory on node 0 (3.0/24.0 GiB) on startup is less than desired CPU memory",
        "To serve at least one request with max seq len (8192), (3.5 GiB KV cache is needed",
    ):
        assert too_little_memory(raised(ValueError(words)))
    assert not too_little_memory(ValueError("no_such_type is no model type"))


def test_deaths() -> None:
    dead = type("EngineDeadError", (Exception,), {})("EngineCore encountered an issue.")
    assert died(raised(EngineError("vLLM failed on a chunk"), dead))
    assert died(RuntimeError("1 multi-process pool worker(s) died unexpectedly: pid 5"))
    assert not died(RuntimeError("the index is out of range"))


def test_what_was_said_is_what_the_engine_said() -> None:
    root = RuntimeError("one\n  two " + "long " * 200)
    assert said(root).startswith("RuntimeError: one two long") and len(said(root)) < 330
    assert said(raised(EngineError("vLLM failed: ..."), KeyError("k"))) == "KeyError: 'k'"
    assert said(EngineError("by itself.")) == "EngineError: by itself"


def test_frames_hold_nothing_any_more() -> None:
    class Tensor:
        pass

    refs = []

    def step() -> None:
        tensor = Tensor()
        refs.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    def wrapped() -> None:
        try:
            step()
        except RuntimeError as error:
            raise EngineError("failed") from error

    with pytest.raises(EngineError, match="failed") as caught:
        wrapped()
    assert refs[0]() is not None
    let_go(caught.value)
    assert refs[0]() is None


def test_what_to_lower() -> None:
    engine = VllmEngine("m", None, {"max_num_seqs": 64, "gpu_memory_utilization": 0.5})
    assert re.search(
        r"max_num_batched_tokens, max_num_seqs=64, max_model_len; .*gpu_memory_utilization=0\.5 "
        r".*kv_cache_memory_bytes",
        memory_advice(engine),
    )
    assert "batch_size (32 by default)" in memory_advice(ModelEngine(None, "float32"))
    assert memory_advice(object()) == "Have it work on fewer or shorter texts at once."
