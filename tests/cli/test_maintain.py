"""check, compact and merge, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from embcache.cli.app import app
from embcache.identity.identity import Identity
from embcache.store import Space
from tests.spaces import IDENTITY, folder, make_rows
from tests.store.test_damage import data_files, flip_bit
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


@pytest.mark.parametrize("command", ["check", "compact", "merge"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: embcache {command} " in result.output


def test_check_all_spaces(tmp_path: Path) -> None:
    names = [fill(tmp_path, identity).name for identity in (IDENTITY, OTHER)]
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "foreign.lance"))
    result = run("check", "--cache", tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines() == [f"{name}.lance: 150 rows, ok" for name in sorted(names)]


def test_check_finds_and_fixes(tmp_path: Path) -> None:
    damage(fill(tmp_path))
    assert run("check", "--cache", tmp_path).exit_code == 1
    assert run("check", "organization", "--cache", tmp_path).exit_code == 1
    fixed = run("check", "--fix", "--cache", tmp_path)
    assert fixed.exit_code == 0 and "1 deleted" in fixed.output
    assert run("check", "--cache", tmp_path).exit_code == 0


def test_check_prints_json(tmp_path: Path) -> None:
    space = fill(tmp_path)
    damage(space)
    result = run("check", "--json", "--cache", tmp_path)
    (report,) = json.loads(result.stdout)
    assert result.exit_code == 1 and report["ok"] is False
    assert report["path"] == str(folder(space))
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
    assert run("compact", "--older-than", 0, "--cache", tmp_path).exit_code == 0
    assert len(data_files(space_in(tmp_path))) == 1


def test_merge(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b", parts=1)
    result = run("merge", tmp_path / "a", "--cache", tmp_path / "b")
    assert result.exit_code == 0 and "100 of 150 rows added, 50 there already" in result.output
    assert len(space_in(tmp_path / "b").refresh()) == 150


def test_merge_says_what_it_could_not_open(tmp_path: Path) -> None:
    for manifest in (fill(tmp_path / "a").path / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    result = run("merge", tmp_path / "a", "--cache", tmp_path / "b")
    assert result.exit_code == 1 and "could not be opened: 1" in result.output


def test_merge_of_what_is_no_cache(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a"]))
    (folder,) = (tmp_path / "a").glob("*.lance")
    for where, hint in ((folder, f"its cache is {tmp_path / 'a'}"), (tmp_path, "nothing to merge")):
        result = run("merge", where, "--cache", tmp_path / "b", "--json")
        assert result.exit_code == 1 and hint in result.stderr and not result.stdout


def test_merge_with_itself_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path)
    result = run("merge", tmp_path, "--cache", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "merged with itself" in result.stderr
