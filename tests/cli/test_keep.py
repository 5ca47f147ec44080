"""check, compact, rm, merge, export and import, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from embcache.cli import keep
from embcache.cli.app import app
from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Space
from tests.spaces import IDENTITY, folder, make_rows
from tests.store.test_damage import data_files, flip_bit
from tests.tools.test_export import filled
from tests.tools.test_import import numpy_cache
from tests.tools.test_merge import space_in

OTHER = Identity("another/model", "1", "bfloat16")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fill(cache: Path, identity: Identity = IDENTITY, parts: int = 3) -> Space:
    space = space_in(cache, identity)
    for part in range(parts):
        texts = [f"{part} {i}" for i in range(50)]
        space.add(make_rows(texts, dim=32, seed=part, identity=identity))
    return space


def damage(space: Space) -> None:
    rows = make_rows([f"0 {i}" for i in range(50)], dim=32, seed=0)
    needle = rows.values[4].tobytes()
    (path,) = [path for path in data_files(space) if needle in path.read_bytes()]
    flip_bit(path, path.read_bytes().index(needle))


@pytest.mark.parametrize("command", ["check", "compact", "merge", "export", "import", "rm"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: embcache {command} " in result.output


def test_check_all_spaces(tmp_path: Path) -> None:
    names = [fill(tmp_path, identity).name for identity in (IDENTITY, OTHER)]
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "foreign.lance"))
    result = run("check", "--cache", tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines() == [f"{name}: 150 rows, ok" for name in sorted(names)]


def test_check_finds_and_fixes(tmp_path: Path) -> None:
    damage(fill(tmp_path))
    assert run("check", "--cache", tmp_path).exit_code == 1
    assert run("check", "organization", "--cache", tmp_path).exit_code == 1
    hint = "On the command line, check_space is embcache check; fix is --fix."
    assert run("check", "--cache", tmp_path).stderr.splitlines() == [hint]
    fixed = run("check", "--fix", "--cache", tmp_path)
    assert fixed.exit_code == 0 and "1 deleted" in fixed.output
    assert run("check", "--cache", tmp_path).exit_code == 0


def test_check_prints_json(tmp_path: Path) -> None:
    space = fill(tmp_path)
    damage(space)
    result = run("check", "--json", "--cache", tmp_path)
    (report,) = json.loads(result.stdout)
    assert result.exit_code == 1 and report["ok"] is False
    assert report["location"] == str(folder(space))
    assert (report["rows"], report["damaged"], report["deleted"]) == (150, 1, 0)


def test_check_only_the_named_space(tmp_path: Path) -> None:
    damage(fill(tmp_path))
    fill(tmp_path, OTHER)
    assert run("check", "another", "--cache", tmp_path).exit_code == 0
    assert run("check", "another", "organization", "--cache", tmp_path).exit_code == 1


@pytest.mark.parametrize("by_name", [True, False])
def test_check_a_space_that_cannot_be_opened(tmp_path: Path, by_name: bool) -> None:
    space = fill(tmp_path)
    for manifest in (folder(space) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    named = [folder(space)] if by_name else []
    result = run("check", *named, "--cache", tmp_path)
    assert result.exit_code == 1 and "NOT ok" in result.output and "Opening" in result.output


def test_no_cache_and_no_spaces(tmp_path: Path) -> None:
    for command in ("check", "compact"):
        missing = run(command, "--cache", tmp_path / "none")
        assert missing.exit_code == 1 and "does not exist" in missing.output
        empty = run(command, "--cache", tmp_path)
        assert empty.exit_code == 0 and "There is no space" in empty.output


def test_compact(tmp_path: Path) -> None:
    fill(tmp_path)
    result = run("compact", "--cache", tmp_path)
    assert result.exit_code == 0 and "3 -> 1 fragments" in result.output
    assert len(data_files(space_in(tmp_path))) == 4  # older versions are kept for an hour
    result = run("compact", "--older-than", 0, "--json", "--cache", tmp_path)
    assert result.exit_code == 0 and json.loads(result.output)[0]["duplicates"] == 0
    assert len(data_files(space_in(tmp_path))) == 1


def test_merge(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b", parts=1)
    result = run("merge", tmp_path / "a", "--cache", tmp_path / "b")
    assert result.exit_code == 0 and "100 of 150 rows added, 50 there already" in result.output
    assert len(space_in(tmp_path / "b").refresh()) == 150


def test_merge_says_what_it_could_not_open(tmp_path: Path) -> None:
    for manifest in (folder(fill(tmp_path / "a")) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    result = run("merge", tmp_path / "a", "--cache", tmp_path / "b")
    assert result.exit_code == 1 and "could not be opened: 1" in result.output


def test_merge_of_what_is_no_cache(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a"]))
    (folder,) = (tmp_path / "a").glob("*.lance")
    for where, hint in ((folder, f"its cache is {tmp_path / 'a'}"), (tmp_path, "nothing to copy")):
        result = run("merge", where, "--cache", tmp_path / "b", "--json")
        assert result.exit_code == 1 and hint in result.stderr and not result.stdout


def test_merge_with_itself_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path)
    result = run("merge", tmp_path, "--cache", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "both the source and the target" in result.stderr


def test_rm(tmp_path: Path) -> None:
    for identity in (IDENTITY, OTHER):
        fill(tmp_path, identity, parts=1)
    asked = run("rm", "another", "--cache", tmp_path)
    assert (
        asked.exit_code == 1 and "Add --yes" in asked.stderr and len(list(tmp_path.iterdir())) == 2
    )
    removed = run("rm", "another", "--yes", "--cache", tmp_path)
    assert "Removed" in removed.stdout and "50 rows" in removed.stdout
    assert [path.name.split("--")[0] for path in tmp_path.iterdir()] == ["organization"]


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 1), ("", 1)])
def test_rm_asks(tmp_path: Path, answer: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "_can_ask", lambda: True)
    fill(tmp_path, parts=1)
    arguments = ["rm", "organization", "--cache", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, input=f"{answer}\n")
    assert "(50 rows, " in result.output and len(list(tmp_path.iterdir())) == left
    assert result.exit_code == left


def test_out_of_one_cache_and_into_another(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    file = tmp_path / "x.parquet"
    exported = run("export", "organization", file, "--cache", tmp_path / "a")
    assert exported.exit_code == 0 and f"{file}: 63 rows" in exported.output
    imported = run("import", file, "--cache", tmp_path / "b")
    assert imported.exit_code == 0 and "63 of 63 rows added" in imported.output
    assert len(space_in(tmp_path / "b").refresh()) == 63


def test_export_options(tmp_path: Path) -> None:
    path = folder(filled(tmp_path / "a"))
    file = tmp_path / "x.parquet"
    result = run("export", path, file, "--prompt", "p: ", "--contains", "text 1")
    assert result.exit_code == 0 and len(pq.read_table(file)) == 11
    refused = run("export", path, file)
    assert refused.exit_code == 1 and "exists" in refused.stderr and "--overwrite" in refused.stderr
    assert run("export", path, file, "--overwrite", "--dtype", "float16").exit_code == 0
    refused = run("import", file, "--cache", tmp_path / "b")
    assert refused.exit_code == 1 and "float16 values" in refused.stderr


def test_an_export_of_nothing_names_the_prompts(tmp_path: Path) -> None:
    path = folder(filled(tmp_path / "a"))
    result = run("export", path, tmp_path / "x.parquet", "--prompt", "p")
    assert result.exit_code == 0 and "0 rows" in result.stdout
    assert "no row fits --prompt and --contains; prompts: 'p: ' (" in result.stderr


@pytest.mark.parametrize("kind", ["txt", "jsonl", "objects"])
def test_numpy_cache(tmp_path: Path, kind: str) -> None:
    texts = ["a", "b b", "c"]
    vectors = numpy_cache(tmp_path / "numpy", texts)
    file = tmp_path / ("texts.txt" if kind == "txt" else "texts.jsonl")
    lines = texts if kind == "txt" else [json.dumps(t) for t in texts]
    if kind == "objects":
        lines = [json.dumps({"text": text, "id": 1}) for text in texts]
    file.write_text("\n".join(lines) + "\n")
    model = ["--model", "x/y", "--revision", "1", "--dtype", "float", "--prompt", "q: "]
    source = [tmp_path / "numpy", "--cache", tmp_path / "b", "--texts", file]
    result = run("import", *source, *model)
    assert result.exit_code == 0 and "3 of 3 rows added" in result.output
    identity = Identity("x/y", "1", "float32")
    space, keys = space_in(tmp_path / "b", identity), text_keys(identity.to_bytes(), "q: ", texts)
    snapshot = space.refresh()
    values, damaged = snapshot.read_all(snapshot.find(keys), keys)
    assert not damaged.any() and (values == vectors).all()


def test_what_a_folder_needs(tmp_path: Path) -> None:
    numpy_cache(tmp_path / "numpy", ["a"])
    source = ["import", tmp_path / "numpy", "--cache", tmp_path / "b"]
    model = ["--model", "x/y", "--revision", "1"]
    result = run(*source)
    assert result.exit_code == 1 and "give --texts, --model" in result.stderr
    bad = tmp_path / "bad.jsonl"
    for content, said in (
        (b"{", "line 1 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'"a"\n1', "line 2 is neither a string"),
        (b'"a"\n"\xff"', "UTF-8"),
    ):
        bad.write_bytes(content)
        result = run(*source, *model, "--dtype", "float32", "--texts", bad)
        assert result.exit_code == 1 and said in result.stderr
    result = run(*source, *model, "--dtype", "auto", "--texts", bad)
    assert result.exit_code == 1 and "--dtype auto says nothing" in result.stderr
    result = run(*source, *model, "--dtype", "float32", "--texts", tmp_path / "none")
    assert result.exit_code == 1 and "is no file" in result.stderr


def test_a_file_says_itself_what_it_is(tmp_path: Path) -> None:
    result = run("import", tmp_path / "x.parquet", "--model", "x/y", "--cache", tmp_path)
    assert result.exit_code == 1 and "says itself what it is" in result.stderr
