from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embcache.cli import look
from embcache.cli.app import app
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys
from embcache.store import SCORES, Database, Rows, Space
from embcache.store.aside import Aside
from tests.spaces import make_rows

TEXTS = ["the quick fox", "a [bold] dog", "多语言\ntext\x1b[31m"]
E5 = Identity("intfloat/e5-small", "abcdef0123456789" * 2, "float32")
RERANKER = Identity("BAAI/bge-reranker-base", "1" * 40, "float16")


def add_space(cache: Path, identity: Identity) -> Space:
    space = Database(cache, writable=True).space(identity, identity.model, "vllm 1.0")
    space.add(make_rows(TEXTS, dim=12, identity=identity))
    return space


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two spaces of one model, and one of scores."""
    path = tmp_path / "cache"
    for dtype in ("float32", "bfloat16"):
        add_space(path, E5.with_dtype(dtype))
    scores = Database(path, writable=True).space(
        RERANKER, RERANKER.model, "vllm 1.0", layout=SCORES
    )
    columns = {"query": "q", "document": ["d", "e"], "query_prefix": "", "document_prefix": ""}
    keys = pair_keys(RERANKER.to_bytes(), ("", ""), ["q", "q"], ["d", "e"])
    scores.add(Rows(keys, np.array([[0.5], [0.25]], np.float32), columns))
    return path


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command beside the cache: its standard output, after a check of the exit code."""
    monkeypatch.chdir(cache.parent)

    def run_(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments, prog_name="embcache")
        assert result.exit_code == code, result.output + repr(result.exception)
        assert (result.stderr == "") == (code == 0)
        return str(result.stdout if code == 0 else result.stderr)

    return run_


Run = Callable[..., str]


def test_ls(run: Run) -> None:
    lines = run("ls").splitlines()
    assert len(lines) == 4 and all(len(line) <= 110 for line in lines)
    row = next(line for line in lines if "bfloat16" in line).split()
    assert row[:4] == [
        E5.with_dtype("bfloat16").fingerprint(), "intfloat/e5-small", "abcdef01", "bfloat16",
    ]  # fmt: skip
    assert row[4:8] == ["'p:", "'", "12", "3"]
    assert "score" in next(line for line in lines if "bge-reranker" in line).split()


def test_ls_on_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = look.console
    monkeypatch.setattr(look, "console", lambda: setattr(c := made(), "width", 80) or c)
    lines = run("ls").splitlines()
    assert all(len(line) <= 80 for line in lines) and "last written" in lines[0]
    assert "revision" not in lines[0] and E5.fingerprint() in "".join(lines)


def test_ls_json(run: Run, cache: Path) -> None:
    spaces = json.loads(run("ls", str(cache), "--json"))
    found = next(space for space in spaces if space["identity"]["dtype"] == "float32")
    assert found["rows"] == 3 and found["dim"] == 12 and found["identity"]["model"] == E5.model
    assert found["counts"]["prompt"] == [{"value": "p: ", "count": 3}]
    assert found["size_bytes"] > 0 and found["last_written"].endswith("+00:00")


def test_ls_of_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("ls", "empty") == f"There are no spaces in {tmp_path / 'empty'}.\n"
    assert run("ls", "empty", "--json") == "[]\n"
    assert f"error: {tmp_path / 'missing'} does not exist." in run("ls", "missing", code=1)


def test_ls_of_something_else(run: Run, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file; a cache is a directory" in run("ls", "file", code=1)
    (tmp_path / "numpy").mkdir()
    for name in ("vectors.npy", "index.json", "dimension"):
        (tmp_path / "numpy" / name).write_text("")
    assert "It is a NumpyCache of mteb's" in run("ls", "numpy")
    assert f"its cache is {cache}" in run("ls", str(next(cache.iterdir())), code=1)
    assert "is a URL of ftp:" in run("ls", "ftp://bucket/cache", code=1)


def test_a_broken_space_does_not_hide_the_others(run: Run, cache: Path) -> None:
    broken = next(cache.glob("*bfloat16*"))
    for manifest in (broken / "_versions").iterdir():
        manifest.write_bytes(b"nothing")
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1 and f"error: Opening {broken} failed" in result.stderr
    assert "float32" in result.stdout and "bge-reranker" in result.stdout
    assert "rows" in run("show", "e5-small--float32")
    assert "Opening" in run("show", "bfloat16", code=1)
    assert "2 in" in run("show", "e5-small", code=1)  # a damaged one may be the one that is meant


def test_a_space_without_manifests_is_no_cache_without_spaces(run: Run, cache: Path) -> None:
    broken = next(cache.glob("*bfloat16*"))
    shutil.rmtree(broken / "_versions")
    for command in ("ls",), ("show", "bfloat16"), ("compact",), ("get", "bfloat16", "a"):
        told = run(*command, code=1)
        assert f"error: {broken} has data files and no manifest" in told and "check" in told


def test_a_space_with_a_broken_file_does_not_hide_the_others(run: Run, cache: Path) -> None:
    broken = next(cache.glob("*bfloat16*"))
    for path in (broken / "data").iterdir():
        path.write_bytes(b"")
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 1 and f"error: Scanning {broken} failed" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_ls_says_what_was_set_aside(cache: Path) -> None:
    (folder,) = cache.glob("*e5*float32*.lance")
    aside = Aside(folder)
    aside.move_table()
    result = CliRunner().invoke(app, ["ls", str(cache)])
    assert result.exit_code == 0 and "float32" not in result.stdout
    said = [line for line in result.stderr.splitlines() if line.startswith("Set aside as damaged")]
    assert said == [f"Set aside as damaged, and used by nothing: {aside.folder}"]


def test_show(run: Run) -> None:
    text = run("show", "e5-small--float32")
    for fact in (
        E5.revision, "vllm truncate_prompt_tokens=-1", E5.fingerprint(), "vllm 1.0",
        "vectors of 12 components", "3, in 1 fragments", "vector: fixed_size_list<item: float>[12]",
        "3  'p: '", "3  'query'", "3  'Task'", "0 to 7            3  ████",
    ):  # fmt: skip
        assert fact in text


def test_show_where_tokens_are_not_recorded(run: Run) -> None:
    text = run("show", "bge-reranker")
    assert "not recorded (n_tokens is null) for 2 rows" in text and "2  (null)" in text
    assert "scores" in text and "query_prefix" in text


def test_show_json(run: Run) -> None:
    found = json.loads(run("show", E5.fingerprint(), "--json"))
    assert found["tokens"] == [{"first": 0, "last": 7, "count": 3}]
    assert found["identity"]["revision"] == E5.revision and found["format_version"] == 1


def test_get(run: Run) -> None:
    text = run("get", E5.fingerprint(), TEXTS[1], "--prompt", "p: ")
    vector = make_rows(TEXTS, dim=12, identity=E5).values[1]
    assert "a [bold] dog" in text and "'p: '" in text and "(12 components" in text
    assert f"{np.linalg.norm(vector):.4f}" in text and f"{vector[0]:.6g}" in text
    found = json.loads(run("get", E5.fingerprint(), TEXTS[2], "--prompt", "p: ", "--json"))
    expected = make_rows(TEXTS, dim=12, identity=E5).values[2]
    assert np.array_equal(np.array(found["vector"], np.float32), expected)
    assert found["text"] == TEXTS[2] and found["n_tokens"] == 2


def test_get_a_score(run: Run) -> None:
    assert "score           0.25" in run("get", "bge", "q", "e")
    found = json.loads(run("get", "bge", "q", "d", "--json"))
    assert found["score"] == 0.5 and found["n_tokens"] is None and found["document"] == "d"


def test_get_prompts_of_a_text_and_of_a_pair(run: Run) -> None:
    message = run("get", "bge", "q", "e", "--query-prefix", "x: ", code=1)
    assert "with prompt 'x: ' and '', but with: '' and ''" in message
    assert "query_prefix    ''" in run("get", "bge", "q", "e", "--document-prefix", "")
    refused = run("get", "bge", "q", "e", "--prompt", "x: ", code=1)
    assert "--prompt is of one text" in refused and "--query-prefix" in refused
    refused = run("get", "bfloat16", TEXTS[0], "--query-prefix", "p: ", code=1)
    assert "are of a pair" in refused and "give --prompt" in refused


def test_get_what_is_not_there(run: Run) -> None:
    assert "with prompt '', but with: 'p: '" in run("get", "bfloat16", TEXTS[0], code=1)
    assert "with whatever prompt" in run("get", "bfloat16", "another", code=1)
    assert "give a query and a document" in run("get", "bge", "q", code=1)


def test_compare(run: Run, cache: Path, tmp_path: Path) -> None:
    text = run("compare", "e5-small--float32", "bfloat16")
    assert "3 shared texts" in text and "minimum 1.000000" in text
    found = json.loads(run("compare", "e5-small--float32", "bfloat16", "--json"))
    assert found["shared"] == 3 and len(found["moved"]) == 3
    add_space(tmp_path / "one", E5)
    assert "3 shared texts" in run("compare", "one", str(next(cache.glob("*bfloat16*"))))
    assert "is not one space: 3 in" in run("compare", "one", "cache", code=1)
    assert "holds scores, not vectors" in run("compare", "one", "bge", code=1)
    (tmp_path / "none").mkdir()
    assert f"There is no space in {tmp_path / 'none'}" in run("compare", "one", "none", code=1)


def test_nothing_shared_is_null_in_json(run: Run, tmp_path: Path) -> None:
    space = Database(tmp_path / "two", writable=True).space(E5, E5.model, "vllm 1.0")
    space.add(make_rows(["only here"], dim=12, identity=E5))
    found = json.loads(run("compare", "two", "bfloat16", "--json"))
    assert found["shared"] == 0 and found["cosine_mean"] is None


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("e5-small", "'e5-small' is not one space: 2 in "),
        ("e6", "No space in {cache} is called 'e6'"),
        ("", "No space in {cache} is called ''"),
        ("cache/nothing.lance", "No space in {cache} is called 'cache/nothing.lance'"),
    ],
)
def test_a_space_that_is_not_one(run: Run, cache: Path, space: str, message: str) -> None:
    text = run("show", space, code=1)
    assert message.format(cache=cache) in text and E5.fingerprint() in text


def test_ways_to_name_a_space(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(cache.glob("*e5-small--float32*"))
    for name in (
        str(folder),
        f"cache/{folder.name}",
        folder.name,
        folder.stem,
        folder.stem.upper(),
    ):
        assert json.loads(run("show", name, "--json"))["location"] == str(folder)
    monkeypatch.chdir("/")
    for name in (folder.name, folder.stem, E5.fingerprint()):
        found = json.loads(run("show", name, "--cache", str(cache), "--json"))
        assert found["location"] == str(folder)


def test_a_model_whose_name_another_begins_with(run: Run, cache: Path) -> None:
    longer = Identity("BAAI/bge-reranker-base-v2", "2" * 40, "float16")
    add_space(cache, longer)
    assert "score" in run("show", RERANKER.model)
    assert "fit" in run("show", "bge-reranker", code=1)
