from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embcache.engine import vllm_compiled
from embcache.engine.vllm_compiled import (
    PROCESSOR,
    compiled_models_found,
    processor,
    told_of_processor,
)
from tests.conftest import run_python

SCRIPT = """
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION as SHARE, VllmEngine

engine = VllmEngine({model!r}, None, {{"dtype": "float32", "gpu_memory_utilization": SHARE}})
vectors = engine.embed(engine.prepare(["a text", "another one, a little longer"]).prompts).vectors
from vllm.compilation.counter import compilation_counter as counter

print(counter.num_aot_compiles, counter.num_aot_artifacts_loaded, vectors.tobytes().hex())
engine.close()
"""


def loader(compiled: object) -> object:
    return lambda file: SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))


def test_what_is_loaded_has_the_step_that_vllm_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    load = loader(lambda x: x + 1)
    monkeypatch.setattr(torch.compiler, "load_compiled_function", load)
    with pytest.raises(RuntimeError, match="does not start"), compiled_models_found():
        compiled = torch.compiler.load_compiled_function(None)._artifacts.compiled_fn
        assert compiled.finalize_loading(None) is None and compiled(1) == 2
        raise RuntimeError("does not start")
    assert torch.compiler.load_compiled_function is load


def test_a_step_of_its_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where it loads what was compiled."""
    own = SimpleNamespace(finalize_loading=lambda config: config)
    monkeypatch.setattr(torch.compiler, "load_compiled_function", loader(own))
    with compiled_models_found():
        found = torch.compiler.load_compiled_function(None)._artifacts.compiled_fn
    assert found.finalize_loading(5) == 5


def test_other_versions_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "load_compiled_function", lambda file: len)
    with compiled_models_found():
        assert torch.compiler.load_compiled_function(None) is len
    monkeypatch.delattr(torch.compiler, "load_compiled_function")
    with compiled_models_found():
        assert not hasattr(torch.compiler, "load_compiled_function")


def test_processors_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for flags in ("avx2", "avx2 avx512f", "avx2"):
        monkeypatch.setattr(vllm_compiled, "_CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(f"model name\t: One\nflags\t\t: {flags}\ncpu MHz\t: 1\n")
        found.add(processor())
    assert len(found) == 2
    monkeypatch.setattr(vllm_compiled, "_CPUINFO", tmp_path / "none")
    assert processor() not in found


def test_the_users_own_configuration_stays() -> None:
    assert told_of_processor(None) == {PROCESSOR: processor()}
    assert told_of_processor({"a": 1}) == {"a": 1, PROCESSOR: processor()}


@pytest.mark.engine
@pytest.mark.slow
def test_the_next_process_does_not_compile_again(model_path: str, tmp_path: Path) -> None:
    """vLLM by itself does, on CPU; and what is loaded makes the same bits."""
    code = SCRIPT.format(model=model_path)
    first, second = (run_python(code, VLLM_CACHE_ROOT=str(tmp_path)).split()[-3:] for _ in range(2))
    assert first[:2] == ["1", "0"]
    assert second == ["0", "1", first[2]]
