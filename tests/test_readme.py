"""The README's own code runs: blocks in their order, in one empty directory."""

from __future__ import annotations

import re
import runpy
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mteb
import pytest
from mteb.mocks.mock_tasks import MockSTSTask

from embcache import encoders, vllm_base
from embcache.engine.vllm import VllmEngine
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.engine
def test_python_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_path: str,
    real_engine: VllmEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the model that is here in E5's place, since tests have no hub; the rest as printed."""
    real = vllm_base.resolve_model
    monkeypatch.setattr(
        vllm_base,
        "resolve_model",
        lambda name, *_: replace(real(model_path), name=name, is_local=False),
    )
    monkeypatch.setattr(encoders, "VllmEngine", lambda *args: real_engine)
    monkeypatch.setattr(real_engine, "close", lambda: None)
    monkeypatch.setattr(
        vllm_base.AutoDtype, "settle", lambda self, cached: "float32"
    )  # what the shared engine runs in
    monkeypatch.setattr(mteb, "get_task", lambda name: MockSTSTask())
    # Without mteb's own results, which would answer a second run of this test.
    monkeypatch.setattr(mteb, "evaluate", partial(mteb.evaluate, cache=None))
    monkeypatch.chdir(tmp_path)
    printed = []
    for number, block in enumerate(blocks("python")):
        (tmp_path / f"block{number}.py").write_text(block)
        runpy.run_path(str(tmp_path / f"block{number}.py"), run_name="__main__")
        printed.append(capsys.readouterr().out)
    example, arrow = printed
    assert re.search(r"\d+ texts, \d+ unique, 0 hits, \d+ encoded", example)
    assert '"dtype":"float32"' in arrow and "vector" in arrow and "text" in arrow


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
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
