"""The README's own code runs: blocks in their order, in one empty directory."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import mteb
import pytest
from huggingface_hub import constants
from mteb.cache import ResultCache
from mteb.mocks.mock_tasks import MockRerankingTask, MockSTSTask

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


def put_into_hub_cache(hub: Path, name: str, commit: str, model: str) -> None:
    folder = hub / f"models--{name.replace('/', '--')}"
    for path in (folder / "refs", folder / "snapshots"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).symlink_to(model)


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
    """Tests have no hub: its cache holds other models under these names, tasks are mteb's mocks.

    Engines that run already stand in for those that the blocks would start.
    """
    hub = tmp_path / "hub"
    put_into_hub_cache(hub, "intfloat/e5-small", "0" * 40, model_path)
    put_into_hub_cache(hub, "BAAI/bge-reranker-base", "1" * 40, cross_encoder_path)
    any_encoder = "sentence-transformers/all-MiniLM-L6-v2"
    commit = mteb.get_model_meta(any_encoder).revision
    put_into_hub_cache(hub, any_encoder, str(commit), model_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(encoders, "VllmEngine", lambda *args: in_any_dtype(real_engine, args[2]))
    monkeypatch.setattr(
        cross_encoder, "VllmScoringEngine", lambda *args: in_any_dtype(real_scoring_engine, args[2])
    )
    tasks = {"STS12": MockSTSTask, "AskUbuntuDupQuestions": MockRerankingTask}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name]())
    # The user's results would answer a second run of this test.
    evaluate, results = mteb.evaluate, ResultCache(tmp_path / "results")
    monkeypatch.setattr(
        mteb, "evaluate", lambda *args, **kwargs: evaluate(*args, **{"cache": results} | kwargs)
    )
    monkeypatch.chdir(tmp_path)
    printed = []
    for number, block in enumerate(blocks("python")):
        (tmp_path / f"block{number}.py").write_text(block)
        runpy.run_path(str(tmp_path / f"block{number}.py"), run_name="__main__")
        printed.append(capsys.readouterr().out)
    first, reranker, wrapped, comparison, team, arrow, looked = printed
    assert team == ""  # made, and asked nothing: no upstream is looked into before the first miss
    assert re.search(r"\d+ texts, \d+ unique, 0 hits, \d+ encoded", first)
    assert re.search(r"\d+ pairs, \d+ unique, 0 hits, \d+ encoded", reranker)
    assert re.search(r"\d+ texts, \d+ unique, 0 hits, \d+ encoded", wrapped)
    assert re.search(r"[1-9]\d* shared texts, 0 only in a, 0 only in b", comparison)
    assert "cosine: mean 1.000000" in comparison  # the same engine here, after all
    for column in ("text", "vector", "query", "document", "score"):
        assert re.search(rf"^{column}: ", arrow, re.MULTILINE), column
    assert arrow.count('"dtype":"float32"') == 3
    assert looked.count("<CachedSpace ") == looked.count(" rows, ok") == 3


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "setup", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    files = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"-r (\S+)", README)
    assert {"CONTRIBUTING.md", "docs/cli.md", "requirements/cpu.txt"} <= set(files)
    for file in files:
        assert (ROOT / file).exists(), file


def test_ci_runs_the_tests() -> None:
    assert re.search(r"^exec make .*\bcheck$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    dry: Any = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-m pytest" in dry.stdout and "ruff" in dry.stdout and "mypy" in dry.stdout
