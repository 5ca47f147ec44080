"""An engine that was started before a fork is the other process's."""

from __future__ import annotations

import os
from typing import Any

import pytest

from embcache import EngineError
from embcache.engine.vllm import VllmEngine


class Forbidden:
    """vLLM's LLM, of which the other process must notice nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is used in a fork")


def test_it_is_neither_used_nor_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VllmEngine("model", None, {})
    engine._llm, engine._process = Forbidden(), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: engine._process + 1)
    said = r"vLLM was started in process \d+, of which this one .* is a fork.*'spawn'"
    with pytest.raises(EngineError, match=said):
        engine.start()
    with pytest.raises(EngineError, match=said):
        engine.prepare(["a text"])
    with pytest.raises(EngineError, match=said):
        engine.embed(["a text"])
    assert engine.started
    engine.close()
    assert not engine.started
