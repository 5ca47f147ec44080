from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
import typer
from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask
from typer.testing import CliRunner, Result

from embcache import EmbcacheError, MissingTextsError
from embcache.cli import evaluate as module
from tests.fakes import FakeEngine

Run = Callable[..., Result]
TASKS = {"Retrieval": MockRetrievalTask, "STS": MockSTSTask}


@pytest.fixture
def run(
    fake_engines: list[FakeEngine],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.setattr(mteb, "get_task", lambda name, **_: TASKS[name]())
    app = typer.Typer(rich_markup_mode=None)
    app.command()(module.evaluate)

    def run_(*arguments: Any, code: int = 0) -> Result:
        model = ("-m", tiny_model, "--dtype", "float32", "--cache", tmp_path / "cache")
        result = CliRunner().invoke(app, [str(a) for a in (*model, *arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run_


@pytest.mark.filterwarnings("ignore")
def test_scores_hits_and_seconds(run: Run, fake_engines: list[FakeEngine]) -> None:
    cold = json.loads(run("-t", "Retrieval", "-t", "STS", "--json").stdout)
    assert [row["task"] for row in cold] == ["MockRetrievalTask", "MockSTSTask"]
    assert cold[0]["metric"] == "ndcg_at_10" and all(row["encoded"] > 0 for row in cold)
    warm = json.loads(run("-t", "Retrieval", "-t", "STS", "--json", "--on-miss", "raise").stdout)
    assert [row["score"] for row in warm] == [row["score"] for row in cold]
    assert all(row["encoded"] == 0 and row["hits"] > 0 for row in warm)
    assert [engine.starts for engine in fake_engines] == [1, 0]


@pytest.mark.filterwarnings("ignore")
def test_the_table(run: Run) -> None:
    out = run("-t", "STS").stdout
    for expected in ("task", "metric", "score", "hits", "seconds", "MockSTSTask"):
        assert expected in out


@pytest.mark.filterwarnings("ignore")
def test_what_goes_wrong(run: Run) -> None:
    assert "Name a task" in run(code=2).stderr
    with pytest.raises(EmbcacheError, match="mteb knows no such task or benchmark: Nothing"):
        run("-t", "Nothing")
    with pytest.raises(MissingTextsError, match="are not cached"):
        run("-t", "STS", "--on-miss", "raise")
    assert "no JSON" in run("-t", "STS", "--prompt-dict", "{", code=2).stderr
