from __future__ import annotations

import sys

import pytest

from embcache.engine.vllm_process import llvmlite_hidden


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
