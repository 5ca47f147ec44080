from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from embcache import EmbcacheError, VllmEncoderWrapper
from embcache.cli import warm as module
from embcache.cli.sources import Sources
from embcache.cluster import ClusterStats, ReplicaStats
from embcache.warm import Columns, Dialect
from tests.conftest import encode
from tests.fakes import FakeEngine, Shared, fake_vector

TEXTS = [f"text {i}" for i in range(300)]
Run = Callable[..., Result]


@pytest.fixture
def run(run_warm: Run) -> Run:
    return run_warm


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def cached(tiny_model: Path, tmp_path: Path, texts: list[str], **kwargs: Any) -> np.ndarray:
    encoder = VllmEncoderWrapper(
        str(tiny_model), dtype="float32", cache_path=tmp_path / "cache", on_miss="raise", **kwargs
    )
    return encode(encoder, texts)


def test_a_file(run: Run, lines: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = run("--jsonl", lines).stdout
    assert "300 texts: 0 were cached, 300 encoded; 0 rows left out" in out
    vectors = cached(tiny_model, tmp_path, TEXTS)
    assert (vectors == np.stack([fake_vector(text) for text in TEXTS])).all()
    assert "300 texts: 300 were cached, 0 encoded" in run("--jsonl", lines).stdout


def test_what_came_from_an_upstream_is_counted(run: Run, lines: Path, tmp_path: Path) -> None:
    team = tmp_path / "team"
    run("--jsonl", lines, "--limit", "100", "--cache", team)
    assert "300 texts: 100 were cached (100 of them upstream), 200 encoded" in (
        run("--jsonl", lines, "--upstream", team).stdout
    )
    found = json.loads(run("--jsonl", lines, "--upstream", team, "--json").stdout)
    assert (found["hits"], found["upstream"]) == (300, 0)


def test_several_sources_at_once(run: Run, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text\none more\n")
    found = json.loads(run("--jsonl", lines, "--csv", tmp_path / "more.csv", "--json").stdout)
    assert (found["texts"], found["encoded"], found["stopped"]) == (301, 301, False)


def test_about_how_many_texts(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text\none\n")
    nothing = {kind: [] for kind in ("parquet", "arrow", "jsonl", "csv")}

    def estimate(limit: int | None = None, shards: int = 1, **kwargs: Any) -> int | None:
        given = {"tasks": [], "files": nothing, "beir": [], "dataset": None, **kwargs}
        sources = Sources(
            benchmarks=[], config=None, dataset_split="train", columns=Columns(), dialect=Dialect(),
            parts=("corpus", "queries"), splits=[], subsets=[], prompt=None, prompt_type=None,
            strict=False, **given,
        )  # fmt: skip
        return sources.estimate(limit, shards)

    files = {**nothing, "jsonl": [str(lines)], "csv": [str(tmp_path / "more.csv")]}
    assert estimate(files=files) == 300 + 2  # with the CSV file's header
    assert estimate(files=files, limit=100) == 102 and estimate(files=files, shards=3) == 100
    assert estimate(files={**files, "jsonl": [str(lines), "-"]}) is None
    assert estimate(files=files, tasks=["STS13"]) == 3302


@pytest.mark.filterwarnings("ignore")
def test_an_mteb_task(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb
    from mteb.mocks.mock_tasks import MockSTSTask

    monkeypatch.setattr(mteb, "get_task", lambda name, **_: {"Mock": MockSTSTask()}[name])
    run("--task", "Mock")
    encoder = VllmEncoderWrapper(
        str(tiny_model), dtype="float32", cache_path=tmp_path / "cache", on_miss="raise"
    )
    mteb.evaluate(encoder, MockSTSTask(), cache=None, show_progress_bar=False)
    assert encoder.total.hits > 0
    with pytest.raises(EmbcacheError, match="mteb knows no such task or benchmark: Nothing"):
        run("--task", "Nothing")


def test_prompts(run: Run, lines: Path, tiny_model: Path, tmp_path: Path) -> None:
    prompts = {"query": "q: ", "document": "d: "}
    run("--jsonl", lines, "--prompt-dict", json.dumps(prompts), "--prompt-type", "query")
    from mteb.types import PromptType

    encoder = VllmEncoderWrapper(
        str(tiny_model),
        dtype="float32",
        cache_path=tmp_path / "cache",
        on_miss="raise",
        prompt_dict=prompts,
    )
    assert len(encode(encoder, TEXTS, prompt_type=PromptType.query)) == 300
    found = json.loads(run("--jsonl", lines, "--prompt", "own: ", "--json").stdout)
    assert found["hits"] == 0


def test_a_dry_run_makes_no_cache(run: Run, lines: Path, tmp_path: Path) -> None:
    assert "missing  300" in run("--jsonl", lines, "--dry-run").stdout
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_starts_nothing(
    run: Run, lines: Path, fake_engines: list[FakeEngine], tmp_path: Path
) -> None:
    run("--jsonl", lines, "--limit", 100)
    out = run("--jsonl", lines, "--dry-run").stdout
    assert out.split("\n")[:4] == ["texts    300", "unique   300", "cached   100", "missing  200"]
    assert re.search(r"tokens   about \d+ \(a guess, .* bytes a token, as in the rows", out)
    assert "disk     about" in out
    assert [engine.starts for engine in fake_engines] == [1, 0]
    found = json.loads(run("--jsonl", lines, "--dry-run", "--json").stdout)
    assert (found["missing"], found["bad_rows"]) == (200, 0)


def test_shards(run: Run, lines: Path, tiny_model: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        found = json.loads(run("--jsonl", lines, "--shard", f"{number}/3", "--json").stdout)
        assert found["encoded"] == 100
    assert len(cached(tiny_model, tmp_path, TEXTS)) == 300


def test_bad_rows_are_shown_and_counted(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{broken\n' + '{"text": null}\n' * 20)
    result = run("--jsonl", path)
    assert f"left out: {path}, line 2: broken JSON" in result.stderr
    assert result.stderr.count("left out: ") == 10
    assert result.stderr.count("only counted") == 1
    assert "1 texts: 0 were cached, 1 encoded; 21 rows left out" in result.stdout
    with pytest.raises(EmbcacheError, match="line 2: broken JSON"):
        run("--jsonl", path, "--strict")


def test_refused_texts_are_rows_that_are_left_out(
    run: Run, tmp_path: Path, fake_engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One list and one count with the rows that have no text; the rest is encoded."""
    refusing = FakeEngine()
    refusing.refuse = {"", "bad"}
    monkeypatch.setattr(fake_engines, "_make", lambda *_: Shared(refusing))
    path = tmp_path / "x.jsonl"
    texts = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}, {"text": "bad"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in texts))
    for summary in ("0 were cached, 2 encoded; 3", "2 were cached, 0 encoded; 3"):
        result = run("--jsonl", path)
        for line, reason in ((2, "column 'text' is null"), (3, "'' is refused"), (5, "'bad' is")):
            place = rf"{re.escape(str(path))}(, line {line})?"
            assert re.search(f"left out: {place}: {reason}", result.stderr)
        assert f"2 texts: {summary} rows left out" in result.stdout
    found = json.loads(run("--jsonl", path, "--json").stdout)
    assert (found["texts"], found["refused"], found["bad_rows"]) == (2, 2, 3)
    (tmp_path / "y.csv").write_text("text\na\nbad\n")
    with pytest.raises(
        EmbcacheError, match=r"y\.csv(, line 3)?: 'bad' is refused by the fake\. Without --strict"
    ):
        run("--csv", tmp_path / "y.csv", "--strict")
    (tmp_path / "z.csv").write_text("text\nbad\n")
    with pytest.raises(EmbcacheError, match="1 were left out"):
        run("--csv", tmp_path / "z.csv")


def test_standard_input(run: Run) -> None:
    found = json.loads(run("--jsonl", "-", "--json", input='{"text": "a"}\n').stdout)
    assert found["encoded"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name some texts: --task"),
        (("--jsonl", "x", "--hf-overrides", "{"), "'--hf-overrides': {: no JSON"),
        (("--jsonl", "x", "--engine-arg", "seed"), "give NAME=JSON"),
        (("--jsonl", "x", "--engine-arg", "seed=one"), "no JSON"),
        (("--jsonl", "x", "--replicas", "2"), "--replicas 2 is for --engine ray, which is not"),
        (("--jsonl", "x", "--address", "auto"), "--address auto is for --engine ray, which"),
        (("--jsonl", "x", "--engine", "dask"), "'dask' is not one of"),
        (("--jsonl", "x", "--engine", "ray", "--replicas", "0"), "'0': give a number, 1 or more"),
        (("--jsonl", "x", "--engine", "ray", "--replicas", "all"), "'all': give a number, 1 or"),
        (("--jsonl", "x", "--engine", "ray", "--replicas", "1.5"), "'1.5': give a number, 1 or"),
    ],
)
def test_usage_errors(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*arguments, code=2).stderr


def test_wrong_values(run: Run, lines: Path) -> None:
    for arguments, message in (
        (("--text-column", "body"), "has no column 'body', only 'text'"),
        (("--title-column", "titel"), "has no column 'titel', only 'text'"),
        (("--strict", "--text-column", "body"), r"line 1: no column 'body'"),
    ):
        with pytest.raises(EmbcacheError, match=message):
            run("--jsonl", lines, *arguments)
    for option, value, message in (
        ("--shard", "4/3", "give number/of"),
        ("--part", "titles", "is not one of"),
        ("--prompt-type", "quer", "is not one of"),
        ("--limit", "0", "greater than or equal to 1"),
    ):
        assert message in run("--jsonl", lines, option, value, code=2).stderr


def test_no_text_at_all(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": 1}\n' * 30)
    for dry in ((), ("--dry-run",)):
        with pytest.raises(EmbcacheError, match="No row had a text: 30 were left out"):
            run("--jsonl", path, *dry)


def test_duplicates_are_hits(run: Run, tmp_path: Path, lines: Path) -> None:
    found = json.loads(run("--jsonl", lines, "--csv", _same(lines, tmp_path), "--json").stdout)
    assert (found["texts"], found["hits"], found["encoded"]) == (600, 300, 300)
    assert found["committed"] == 300 and "unique" not in found


def _same(lines: Path, folder: Path) -> Path:
    (folder / "same.csv").write_text("\n".join(["text", *TEXTS]))
    return folder / "same.csv"


def test_prompts_that_no_file_gets_are_said(run: Run, lines: Path) -> None:
    prompts = ("--prompt-dict", json.dumps({"query": "q: ", "document": "d: "}))
    result = run("--jsonl", lines, *prompts, "--dry-run")
    assert "files and data sets get no prompt: of --prompt-dict (query, document)" in result.stderr
    assert "prompts  '' (300)\n" in result.stdout
    result = run("--jsonl", lines, *prompts, "--dry-run", "--prompt-type", "query")
    assert "no prompt" not in result.stderr and "prompts  'q: ' (300)\n" in result.stdout


def test_engine_arguments_reach_the_engine(
    run: Run, lines: Path, fake_engines: list[FakeEngine]
) -> None:
    run(
        *("--jsonl", lines, "--max-model-len", 99, "--engine-arg", 'quantization="fp8"'),
        *("--no-trust-remote-code", "--gpu-memory-utilization", 0.3),
    )
    arguments = fake_engines[-1].arguments
    assert arguments["max_model_len"] == 99 and arguments["quantization"] == "fp8"
    assert arguments["trust_remote_code"] is False and arguments["gpu_memory_utilization"] == 0.3


class OnRay:
    """In the place of `ClusterWarmer`: notes what it is asked, and has done a little."""

    asked: ClassVar[list[Any]] = []
    stats: ClassVar[ClusterStats] = ClusterStats()

    def __init__(self, encoder: Any, replicas: Any, address: Any, advance: Any, report: Any):
        self.stop = threading.Event()
        self.asked[:] = [replicas, address]

    def run(self, parts: Any, batches: Any, total: Any) -> ClusterStats:
        read = lambda source: [t for b in source.read(print) for t in b.texts]  # noqa: E731
        self.asked += [[read(part) for part in parts]]
        self.asked += [None if batches is None else [t for b in batches for t in b.texts], total]
        return self.stats


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> type[OnRay]:
    monkeypatch.setattr(module, "ClusterWarmer", OnRay)
    replicas = [
        ReplicaStats("a", 11, 200, 2, 1),
        *(ReplicaStats("b", 12 + i, 100, 1, 2) for i in range(17)),
    ]
    stats = ClusterStats(texts=300, encoded=300, committed=300, seconds=2.0, replicas=replicas)
    monkeypatch.setattr(OnRay, "stats", stats)
    return OnRay


def test_on_a_cluster(
    run: Run, lines: Path, on_ray: type[OnRay], fake_engines: list[FakeEngine]
) -> None:
    out = run("--jsonl", lines, "--engine", "ray").stdout
    assert on_ray.asked == ["auto", None, [TEXTS], None, on_ray.asked[-1]]
    assert "300 texts: 0 were cached, 300 encoded" in out
    assert "  a, process 11: 200 encoded in 2 blocks\n" in out
    assert "  b, process 12: 100 encoded in 1 blocks, started 2 times" in out
    assert out.count("process") == 16 and "and 2 replicas more (--json)" in out
    assert not any(engine.starts for engine in fake_engines)
    run("--jsonl", lines, "--engine", "ray", "--replicas", "auto", "--address", "head:1")
    assert on_ray.asked[:2] == ["auto", "head:1"]
    run("--jsonl", lines, "--engine", "ray", "--replicas", "3", "--shard", "2/2", "--limit", "10")
    assert on_ray.asked[:3] == [3, None, [TEXTS[:10][1::2]]]


def test_what_no_other_machine_can_read_is_read_here(run: Run, on_ray: type[OnRay]) -> None:
    run("--jsonl", "-", "--engine", "ray", input='{"text": "a"}\n')
    assert on_ray.asked[2:4] == [[], ["a"]]


def test_json_of_a_cluster(run: Run, lines: Path, on_ray: type[OnRay]) -> None:
    found = json.loads(run("--jsonl", lines, "--engine", "ray", "--json").stdout)
    assert found["encoded"] == 300 and len(found["replicas"]) == 18
    assert found["replicas"][0] == {
        "host": "a", "pid": 11, "encoded": 200, "blocks": 2, "starts": 1
    }  # fmt: skip


def test_a_dry_run_asks_no_cluster(run: Run, lines: Path, on_ray: type[OnRay]) -> None:
    on_ray.asked.clear()
    out = run("--jsonl", lines, "--engine", "ray", "--dry-run").stdout
    assert "missing" in out and not on_ray.asked


def test_a_cluster_that_was_stopped(
    run: Run, lines: Path, on_ray: type[OnRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = ClusterStats(texts=100, encoded=100, committed=100, stopped=True)
    monkeypatch.setattr(OnRay, "stats", stats)
    out = run("--jsonl", lines, "--engine", "ray", code=130).stdout
    assert "Stopped. The 100 that were encoded are in" in out


def test_help_has_an_example() -> None:
    app = typer.Typer(rich_markup_mode=None)
    module.register(app)
    app.callback()(lambda: None)
    out = CliRunner().invoke(app, ["warm", "--help"]).output
    assert "Example: embcache warm" in out
