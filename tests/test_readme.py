"""The README's own code runs: blocks in their order, in one empty directory."""

from __future__ import annotations

import re
import runpy
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
import pytest
from mteb.mocks.mock_tasks import MockRerankingTask, MockSTSTask
from mteb.models import SentenceTransformerEncoderWrapper

from embcache.encoders import vllm_base
from embcache.encoders import vllm_cross_encoder as cross_encoder
from embcache.encoders import vllm_encoder as encoders
from embcache.engine.vllm import VllmEngine, VllmScoringEngine
from tests.conftest import ROOT
from tests.fakes import Shared

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def in_any_dtype(engine: VllmEngine, arguments: dict[str, Any]) -> Shared:
    """The shared engine, saying that it computes in what it was asked for."""
    return Shared(engine, "float32" if arguments["dtype"] == "auto" else arguments["dtype"])


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_python_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_path: str,
    real_engine: VllmEngine,
    cross_encoder_path: str,
    real_scoring_engine: VllmScoringEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With models that are here in the named ones' place, since tests have no hub."""
    real = vllm_base.resolve_model
    local = {"intfloat/e5-small": model_path, "BAAI/bge-reranker-base": cross_encoder_path}
    monkeypatch.setattr(
        vllm_base,
        "resolve_model",
        lambda name, *_: replace(real(local[name]), name=name, is_local=False),
    )
    monkeypatch.setattr(encoders, "VllmEngine", lambda *args: in_any_dtype(real_engine, args[2]))
    monkeypatch.setattr(
        cross_encoder, "VllmScoringEngine", lambda *args: in_any_dtype(real_scoring_engine, args[2])
    )
    # What the shared engines run in.
    monkeypatch.setattr(vllm_base.AutoDtype, "settle", lambda self, cached: "float32")
    tasks = {"STS12": MockSTSTask, "AskUbuntuDupQuestions": MockRerankingTask}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name]())
    monkeypatch.setattr(
        mteb, "get_model", lambda name: SentenceTransformerEncoderWrapper(model_path, device="cpu")
    )
    # Without mteb's own results, which would answer a second run of this test.
    evaluate = mteb.evaluate
    monkeypatch.setattr(
        mteb, "evaluate", lambda *args, **kwargs: evaluate(*args, **kwargs | {"cache": None})
    )
    monkeypatch.chdir(tmp_path)
    printed = []
    for number, block in enumerate(blocks("python")):
        (tmp_path / f"block{number}.py").write_text(block)
        runpy.run_path(str(tmp_path / f"block{number}.py"), run_name="__main__")
        printed.append(capsys.readouterr().out)
    first, reranker, any_encoder, comparison, arrow = printed
    assert re.search(r"\d+ texts, \d+ unique, 0 hits, \d+ encoded", first)
    assert re.search(r"\d+ pairs, \d+ unique, 0 hits, \d+ encoded", reranker)
    assert re.search(r"\d+ texts, \d+ unique, 0 hits, \d+ encoded", any_encoder)
    assert re.search(r"[1-9]\d* shared texts, 0 only in a, 0 only in b", comparison)
    assert "cosine: mean 1.000000" in comparison  # the same engine here, after all
    for column in ("text", "vector", "query", "document", "score"):
        assert column in arrow
    assert arrow.count('"dtype":"float32"') == 3


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "setup", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    for file in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"-r (\S+)", README):
        assert (ROOT / file).is_file(), file


def test_ci_runs_the_tests() -> None:
    assert "make" in (ROOT / ".ci" / "run").read_text()
    dry: Any = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-m pytest" in dry.stdout and "ruff" in dry.stdout and "mypy" in dry.stdout
