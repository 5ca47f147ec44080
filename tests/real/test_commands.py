"""Two tasks on real text: warmed with real vLLM, evaluated, looked into.

Every command runs on the cache that this makes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embcache import VllmEncoderWrapper
from embcache.cli.app import app
from embcache.encoders import vllm_encoder as encoders
from embcache.engine.vllm import VllmEngine
from tests.fakes import Shared
from tests.real.tasks import PROMPTS, DocstringBodies, DocstringKinds, docstrings

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TASKS = ("tests.real.tasks:DocstringBodies", "tests.real.tasks:DocstringKinds")
DOCS = 120
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def warmed(
    model_path: str, real_engine: VllmEngine, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A cache that `embcache warm --task ... --task ...` filled, and what it said."""
    folder = tmp_path_factory.mktemp("warmed")
    command = ["warm", "--model", model_path, "--dtype", "float32", "--json"]
    command += ["--prompt-dict", json.dumps(PROMPTS), "--cache", str(folder / "cache")]
    for task in TASKS:
        command += ["--task", task]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBCACHE_HOME", str(folder / "home"))
        patch.setattr(encoders, "VllmEngine", lambda *_: real_engine)
        patch.setattr(real_engine, "close", lambda: None)  # it is shared
        result = CliRunner().invoke(app, command, prog_name="embcache")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return {"cache": folder / "cache", **json.loads(result.stdout)}


@pytest.fixture
def cache(warmed: dict[str, Any], tmp_path: Path) -> Path:
    """A copy, so that a test may change it."""
    return shutil.copytree(warmed["cache"], tmp_path / "cache")


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command beside the cache; its JSON, or its text."""
    monkeypatch.chdir(cache.parent)

    def run_(*arguments: str) -> Any:
        result = CliRunner().invoke(app, arguments, prog_name="embcache")
        assert result.exit_code == 0, result.output + repr(result.exception)
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run_


def test_evaluation_encodes_nothing(warmed: dict[str, Any], model_path: str) -> None:
    assert warmed["encoded"] == warmed["committed"] > 3 * DOCS
    for task, least in ((DocstringBodies(), 0.5), (DocstringKinds(), 0.6)):
        encoder = VllmEncoderWrapper(
            model_path,
            dtype="float32",
            prompt_dict=PROMPTS,
            cache_path=warmed["cache"],
            on_miss="raise",
        )
        result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
        assert encoder.total.texts > 0 and encoder.total.encoded == 0
        assert result.task_results[0].get_score() > least  # of real vectors, not of any


def test_ls_and_show(run: Run, warmed: dict[str, Any]) -> None:
    (space,) = run("ls", "--json")
    assert space["rows"] == warmed["encoded"] and space["dim"] == 384
    prompts = {one["value"]: one["count"] for one in space["counts"]["prompt"]}
    topics = warmed["encoded"] - 2 * DOCS  # some: mteb draws the texts that it trains on
    assert prompts == {"topic: ": topics, "search_query: ": DOCS, "search_document: ": DOCS}
    shown = run("show", space["fingerprint"])
    assert "vectors of 384 components" in shown and "'search_query: '" in shown
    assert sum(part["count"] for part in space["tokens"]) == space["rows"]


def test_get_and_search(
    run: Run, real_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, model_path: str
) -> None:
    monkeypatch.setattr(encoders, "VllmEngine", lambda *_: Shared(real_engine))
    summary = docstrings()[0].summary
    one = run("get", "float32", summary, "--prompt", "search_query: ", "--json")
    assert one["norm"] == pytest.approx(1, abs=1e-4) and len(one["vector"]) == 384
    found = run("search", "float32", summary, "--prompt", "search_query: ", "-k", "3", "--json")
    matches = {(match["prompt"], match["text"]) for match in found}
    assert len(matches) == 3 and ("search_query: ", summary) not in matches
    # Not cached as it is written here, but nearly: its own text is the nearest.
    asked = ("search", "float32", f"{summary} ", "--prompt", "topic: ", "-k", "1", "--json")
    (nearest,) = run(*asked)
    assert nearest["text"] == summary and nearest["cosine"] > 0.99
    word = max(summary.split(), key=len)
    assert any(word in match["text"] for match in run("search", "float32", word, "--fts", "--json"))


def test_export_import_and_compare(run: Run, warmed: dict[str, Any]) -> None:
    assert run("export", "float32", "all.parquet", "--json")["rows"] == warmed["encoded"]
    run("export", "float32", "queries.npy", "--prompt", "search_query: ")
    assert pq.read_table("all.parquet").num_rows == warmed["encoded"]
    assert np.load("queries.npy").shape == (DOCS, 384)
    found = run("import", "all.parquet", "--cache", "imported", "--json")
    assert (found["added"], found["refused"]) == (warmed["encoded"], 0)
    assert "none has moved" in run("compare", "cache", "imported")
    found = run("compare", "cache", "imported", "--json")
    assert found["shared"] == warmed["encoded"] and found["cosine_min"] == 1


def test_map(run: Run, warmed: dict[str, Any]) -> None:
    """The prompts are far apart; so are their points."""
    found = run("map", "float32", "map.parquet", "--json")
    assert found["points"] == warmed["encoded"] and sum(found["explained_variance_ratio"]) > 0.05
    points = pq.read_table("map.parquet").to_pydict()
    topic = np.array([prompt == "topic: " for prompt in points["prompt"]])
    xy = np.stack([points["x"], points["y"]], axis=1)
    gap = np.linalg.norm(xy[topic].mean(axis=0) - xy[~topic].mean(axis=0))
    assert gap > xy[topic].std(axis=0).min()
    for name in ("map.html", "map.png"):
        assert run("map", "float32", name, "--json")["color"] == "prompt"
        assert Path(name).stat().st_size > 20_000


def test_check_compact_merge_and_rm(run: Run, warmed: dict[str, Any]) -> None:
    for command in (["check"], ["check", "--fix"]):
        rows, canaries = run(*command).splitlines()
        assert rows.endswith(f": {warmed['encoded']} rows, ok")
        assert canaries.startswith("  canaries: 15 (vllm") and "'search_query: '" in canaries
    (compacted,) = run("compact", "--json")
    assert compacted["fragments_after"] == 1 <= compacted["fragments_before"]
    (merged,) = run("merge", "cache", "--cache", "other", "--json")["spaces"]
    assert merged["added"] == merged["rows"] == warmed["encoded"] and merged["lost"] == 0
    (space,) = run("ls", "other", "--json")
    assert space["rows"] == warmed["encoded"]
    removed = run("rm", "float32", "--cache", "other", "--yes", "--json")
    assert removed["rows"] == warmed["encoded"]
    assert run("ls", "other", "--json") == []


def test_eval(run: Run, model_path: str) -> None:
    options = ("-m", model_path, "--dtype", "float32", "--prompt-dict", json.dumps(PROMPTS))
    found = run("eval", *options, "-t", TASKS[0], "--on-miss", "raise", "--json")
    assert found[0]["task"] == "DocstringBodies" and found[0]["encoded"] == 0
    assert found[0]["hits"] == 2 * DOCS and found[0]["score"] > 0.5
