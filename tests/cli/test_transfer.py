"""push and pull, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_keep import OTHER, fill, run
from tests.spaces import folder
from tests.tools.test_merge import space_in
from tests.tools.test_transfer import prompted


@pytest.mark.parametrize("command", ["push", "pull"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: embcache {command} " in result.output


def test_push_and_pull(tmp_path: Path) -> None:
    name = fill(tmp_path / "a").name
    fill(tmp_path / "a", OTHER, parts=1)
    result = run("push", tmp_path / "b", "organization", "--cache", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{name}: 150 of 150 rows added, 0 there already\n"
    result = run("pull", tmp_path / "a", "--cache", tmp_path / "b", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["failed"] == []
    counts = [(one["rows"], one["added"], one["present"]) for one in report["spaces"]]
    assert sorted(counts) == [(50, 50, 0), (150, 0, 150)]


def test_filters_that_no_row_fits_name_the_prompts(tmp_path: Path) -> None:
    space = space_in(tmp_path / "a")
    space.add(prompted([f"{i}" for i in range(5)]))
    options = ("--cache", tmp_path / "b", "--prompt", "query:")
    result = run("pull", tmp_path / "a", *options)
    assert result.exit_code == 0 and "0 of 5 rows added, 0 there already, 5 not" in result.stdout
    assert result.stderr == (
        "no row that was not there already fits --prompt and --contains; "
        "prompts: 'query: ' (3), 'passage: ' (2)\n"
    )
    result = run("pull", tmp_path / "a", "--cache", tmp_path / "b", "--prompt", "query: ")
    assert "3 of 5 rows added" in result.stdout and result.stderr == ""
    assert len(space_in(tmp_path / "b").refresh()) == 3


def test_a_space_that_cannot_be_opened(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    broken = fill(tmp_path / "a", OTHER)
    for manifest in (folder(broken) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    result = run("push", tmp_path / "b", "--cache", tmp_path / "a", "--contains", "nowhere")
    assert result.exit_code == 1
    assert "error: Spaces that could not be opened: 1" in result.stderr
    assert "prompts: 'p: ' (150)" in result.stderr


def test_what_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    result = run("pull", tmp_path / "a", "--cache", tmp_path / "b")
    assert result.exit_code == 1 and "nothing to copy" in result.stderr
    result = run("push", tmp_path / "b", "--cache", tmp_path / "none")
    assert result.exit_code == 1 and "does not exist" in result.stderr
    result = run("push", tmp_path / "a", "--cache", tmp_path / "a")
    assert result.exit_code == 1 and "both the source and the target" in result.stderr
