from __future__ import annotations

import functools
import gc
import queue
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from embcache.engine.failures import died
from embcache.engine.vllm_process import (
    collector_off,
    forget_models,
    heap_set_aside,
    llvmlite_hidden,
    woken_if_killed,
)


def test_llvmlite_is_back_whatever_happens() -> None:
    import llvmlite.binding.ffi as ffi

    with pytest.raises(RuntimeError, match="does not start"), llvmlite_hidden():
        assert "llvmlite.binding.ffi" not in sys.modules
        from llvmlite.binding import ffi as found  # imports go on to work meanwhile

        assert found is ffi
        raise RuntimeError("does not start")
    assert sys.modules["llvmlite.binding.ffi"] is ffi


def test_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llvmlite.binding.ffi", raising=False)
    with llvmlite_hidden():
        pass
    assert "llvmlite.binding.ffi" not in sys.modules


def test_the_collector_is_on_again_whatever_happens() -> None:
    with pytest.raises(RuntimeError, match="no such module"), collector_off():
        assert not gc.isenabled()
        raise RuntimeError("no such module")
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_off():
            pass
        assert not gc.isenabled()  # the user's own doing
    finally:
        gc.enable()


def test_the_heap_is_set_aside_for_an_engine_in_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.unfreeze()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with heap_set_aside():
        assert not gc.get_freeze_count()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(RuntimeError, match="does not start"), heap_set_aside():
        assert gc.get_freeze_count()
        raise RuntimeError("does not start")
    assert not gc.get_freeze_count()
    gc.freeze()
    try:
        with pytest.raises(RuntimeError, match="does not start"), heap_set_aside():
            raise RuntimeError("does not start")
        assert gc.get_freeze_count()  # the user's own doing
    finally:
        gc.unfreeze()


def test_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's `get_pooling_config`, a `functools.cache` by path."""
    one, other = ModuleType("vllm.transformers_utils.x"), ModuleType("vllm.platforms.x")
    for module in (one, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        module.read = functools.cache(Path.read_text)  # type: ignore[attr-defined]
    path = tmp_path / "config.json"
    for content in ("mean", "cls"):
        path.write_text(content)
        forget_models()
        assert one.read(path) == content
        assert other.read(path) == "mean"


@pytest.mark.engine
@pytest.mark.slow
def test_vllm_keeps_what_it_read_where_it_is_looked_for() -> None:
    """Otherwise the above forgets nothing, and a changed folder is embedded as it was."""
    from vllm.tokenizers.registry import cached_get_tokenizer
    from vllm.transformers_utils.config import get_pooling_config

    for function in (get_pooling_config, cached_get_tokenizer):
        assert isinstance(function, type(functools.cache(len)))


def test_a_killed_engine_wakes_who_waits_for_it() -> None:
    """As vLLM's own client waits: on a queue into which nobody puts anything any more."""
    resources = SimpleNamespace(engine_dead=False)
    core = SimpleNamespace(outputs_queue=queue.Queue(), resources=resources)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))
    with woken_if_killed(llm):
        threading.Timer(0.2, lambda: setattr(resources, "engine_dead", True)).start()
        found = core.outputs_queue.get(timeout=30)
    assert isinstance(found, RuntimeError) and died(found)
    with woken_if_killed(SimpleNamespace()):  # an engine in this process
        assert threading.active_count() >= 1
