from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from embcache.engine.vllm_process import forget_models, llvmlite_hidden


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
