from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from demo import MARKER, empty_cache, find_faults
from demo_corpus import Docstring, choose, name_words, read_docstrings
from demo_run import Run, TaskRun

BODY = "It goes on for long enough to be a document of its own, " * 2

MODULE = f'''
"""A module that does something useful.

{BODY} 1
"""

class Thing:
    """A thing that is kept
    over two lines.

    {BODY} 2
    """

    def doIt_nowHTTP(self):
        """Do it, and then do it again.

        {BODY} 3
        """
        def inner():
            """A function nobody can import.

            {BODY} 4
            """

    def _private(self):
        """Do what nobody needs to know.

        {BODY} 5
        """

    def short(self):
        """Return the thing, and no more than that."""

    def again(self):
        """Do it, and then do it again.

        {BODY} 6
        """
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in ("pkg/__init__.py", "pkg/_hidden.py", "test/a.py", "site-packages/b.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(MODULE)
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "no_python.txt").write_text(MODULE)
    return tmp_path


def test_reads_public_docstrings_with_a_body_and_a_summary_of_their_own(library: Path) -> None:
    found = read_docstrings(library)
    assert [docstring.name for docstring in found] == ["pkg", "pkg.Thing", "pkg.Thing.again"]
    assert found[1].summary == "A thing that is kept over two lines."
    assert found[1].body == f"{BODY} 2"


def test_this_pythons_library_is_large_enough_and_has_one_answer_to_each_query() -> None:
    found = read_docstrings()
    assert len(found) > 1000
    for texts in zip(*((d.summary, d.body, d.words) for d in found), strict=True):
        assert len(set(texts)) == len(found)


@pytest.mark.parametrize("count", [1, 7, 99, 100, 10**6])
def test_chosen_ones_are_spread_evenly(count: int) -> None:
    found = [Docstring(f"module.name{i:02}", f"summary {i}", f"body {i}") for i in range(100)]
    chosen = choose(found, count)
    assert len(chosen) == min(count, len(found))
    assert chosen[0] == found[0]
    assert chosen == sorted(set(chosen), key=found.index)
    if count == 7:
        assert [d.name[-2:] for d in chosen] == ["00", "14", "28", "42", "57", "71", "85"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json.decoder.JSONDecoder.raw_decode", "raw decode JSON decoder json"),
        ("http.server.HTTPServer", "HTTP server http"),
        ("asyncio.Queue", "queue asyncio"),
        ("hashlib.sha3_256", "sha 3 256 hashlib"),
        ("a.B", "b a"),
    ],
)
def test_words_of_a_name(name: str, words: str) -> None:
    assert name_words(name) == words


def make_run(*, warm: bool, score: float = 0.5, engine: bool | None = None) -> Run:
    def task(name: str, hits: int) -> TaskRun:
        scores = {"test": [{"ndcg_at_10": score, "nauc": float("nan"), "hf_subset": "default"}]}
        return TaskRun(name, score, scores, 1.0, 20, hits, 20 - hits)

    tasks = [task("one", 20 if warm else 0), task("two", 20 if warm else 10)]
    return Run(not warm if engine is None else engine, tasks)


def test_runs_as_they_should_be_have_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_run(warm=True).write(path)
    assert find_faults(make_run(warm=False), Run.read(path), 10) == []


def test_every_promise_is_checked() -> None:
    cold = make_run(warm=False)
    least = 0.5 + 2**-53
    assert find_faults(cold, make_run(warm=True, score=least), 10) == [
        f"{name} test/0/ndcg_at_10: 0.5 cold, {least!r} warm" for name in ("one", "two")
    ]
    assert find_faults(cold, make_run(warm=True, engine=True), 10) == ["the warm run imported vllm"]
    assert find_faults(make_run(warm=False, engine=False), make_run(warm=True), 10) == [
        "the cold run did not start vLLM"
    ]
    assert find_faults(cold, make_run(warm=True), 11) == [
        "the second task found 10 of 11 documents cached"
    ]
    assert len(find_faults(cold, dataclasses.replace(cold, engine_started=False), 10)) == 2


def test_a_score_that_only_one_run_has_is_a_fault() -> None:
    warm = make_run(warm=True)
    del warm.tasks[0].scores["test"][0]["nauc"]
    assert find_faults(make_run(warm=False), warm, 10) == ["one test/0/nauc: nan cold, None warm"]


def test_empties_what_a_demo_made_and_nothing_else(tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    empty_cache(cache)
    (cache / "model.lance" / "data").mkdir(parents=True)
    (cache / "notes.txt").touch()
    empty_cache(cache)
    assert sorted(path.name for path in cache.iterdir()) == [MARKER, "notes.txt"]


def test_refuses_to_empty_a_cache_that_is_no_demos(tmp_path: Path) -> None:
    (tmp_path / "model.lance").mkdir()
    with pytest.raises(SystemExit, match="no demo put there"):
        empty_cache(tmp_path)
    assert (tmp_path / "model.lance").exists()
