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
from embcache.cli.app import app as embcache
from embcache.cli.warm import warm
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
    app.command("eval")(module.evaluate)
    app.command()(warm)

    def run_(*arguments: Any, code: int = 0, command: str = "eval") -> Result:
        model = ("-m", tiny_model, "--dtype", "float32", "--cache", tmp_path / "cache")
        result = CliRunner().invoke(app, [str(a) for a in (command, *model, *arguments)])
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        ("--max-model-len", 128),
        ("--pooler-config", '{"pooling_type": "CLS"}', "--hf-overrides", '{"x": 1}'),
        ("--prompt-dict", '{"query": "q: ", "document": "d:\\n"}'),
        ("--prompt-dict", "{}", "--use-instructions", "--instruction-template", "{instruction}\n"),
        ("--engine-arg", 'quantization="fp8"', "--no-trust-remote-code"),
        ("--lora-request", "adapter"),
    ],
    ids=str,
)
def test_what_was_warmed_is_hit_with_the_same_options_and_found(
    run: Run, options: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fake_engines: list[FakeEngine],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    run("-t", "Retrieval", *options, command="warm")
    (row,) = json.loads(run("-t", "Retrieval", *options, "--on-miss", "raise", "--json").stdout)
    assert row["encoded"] == 0 and row["hits"] > 0
    asked = ["search", "cache", "a new text", "--prompt", "", "-k", "1", "--json"]
    found = CliRunner().invoke(embcache, [*asked, *searched(options)])
    assert found.exit_code == 0 and len(json.loads(found.stdout)) == 1, found.output
    assert [engine.starts for engine in fake_engines] == [1, 0, 1]
    with pytest.raises(MissingTextsError, match="are not cached"):
        run("-t", "Retrieval", "--max-model-len", 64, "--on-miss", "raise")


def searched(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those that `search` needs, too: only where files are is not in the space."""
    return options if options[0] == "--lora-request" else ()


@pytest.mark.filterwarnings("ignore")
def test_what_a_team_has_is_a_hit(run: Run, fake_engines: list[FakeEngine], tmp_path: Path) -> None:
    team, laptop = tmp_path / "team", tmp_path / "laptop"
    run("-t", "STS", "--upstream", team, "--upstream-write", command="warm")
    replay = ("-t", "STS", "--json", "--cache", laptop, "--on-miss", "raise")
    for arguments in ((*replay, "--upstream", tmp_path / "nowhere", "--upstream", team), replay):
        (row,) = json.loads(run(*arguments).stdout)
        assert row["encoded"] == 0 and row["hits"] > 0
    assert [engine.starts for engine in fake_engines] == [1, 0, 0]
