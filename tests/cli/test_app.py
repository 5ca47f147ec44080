from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from embcache.cli import output
from embcache.cli.app import app
from embcache.store import Database
from tests.conftest import ROOT, run_python
from tests.spaces import IDENTITY, make_rows


def embcache(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m embcache` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "embcache", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    space = Database(tmp_path, writable=True).space(IDENTITY, IDENTITY.model, "vllm 1.0")
    space.add(make_rows(["多语言"]))
    return tmp_path


def test_a_process_of_its_own(cache: Path) -> None:
    result = embcache("ls", str(cache))
    assert result.returncode == 0 and "organization/name" in result.stdout and not result.stderr


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = embcache("ls", str(tmp_path / "missing"))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path}") and len(result.stderr.splitlines()) == 1


def test_a_terminal_that_lacks_characters(cache: Path) -> None:
    arguments = ("get", "organization", "多语言", "--prompt", "p: ", "--cache", str(cache))
    result = embcache(*arguments, PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and "\\u591a" in result.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(cache: Path, closed: str) -> None:
    """As some schedulers start processes."""
    code = f'"{sys.executable}" -m embcache ls "{cache}" {closed}'
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_a_closed_pipe(cache: Path) -> None:
    command = f"'{sys.executable}' -m embcache show organization --cache '{cache}' | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["sl"], ["ls", "--jsn"], ["show"], ["ls", "a", "b"], ["search", "a", "b", "-k", "0"]],
)
def test_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "Usage: " in result.stderr and result.stdout == ""


def test_a_command_that_is_nearly_right() -> None:
    assert "Did you mean 'show'" in CliRunner().invoke(app, ["shwo"]).stderr


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("embcache ")
    result = CliRunner().invoke(app, ["-h"])
    assert result.exit_code == 0 and "  ls " in result.stdout and "  search " in result.stdout


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embcache.store.Database.readable_spaces", interrupted)
    result = CliRunner().invoke(app, ["ls"])
    assert result.exit_code == 130 and "Traceback" not in result.output


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("embcache.store.Database.readable_spaces", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        CliRunner().invoke(app, ["ls"], catch_exceptions=False)


def test_the_library_does_not_import_the_command_line() -> None:
    code = "import sys, embcache; print([m for m in sys.modules if m.startswith('embcache.cli')])"
    assert run_python(code, blocked=("typer",)) == "[]\n"


def test_counts_texts_and_prompts() -> None:
    assert output.human_count(12345) == "12,345" and output.human_time(None) == "-"
    assert output.one_line("a\n b\x1b[0m", 10) == "a b\ufffd[0m"
    assert output.one_line("word " * 100, 10) == "word word…"
    assert output.quoted("query: ") == "'query: '" and output.quoted("abcdef", 4) == "'abc…'"


def test_words_of_the_library_are_told_as_they_are_typed(cache: Path, tmp_path: Path) -> None:
    def said(*arguments: Any) -> list[str]:
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        assert result.exit_code == 1
        return result.stderr.splitlines()

    file = tmp_path / "x.parquet"
    file.write_text("")
    error, hint = said("export", cache, file)
    assert error.startswith("error: ") and error.endswith("overwrite=True to replace it.")
    assert hint == "On the command line, overwrite is --overwrite."
    assert len(said("ls", tmp_path / "missing")) == 1
    for manifest in cache.glob("*.lance/_versions/*"):
        manifest.write_bytes(b"nothing")
    *_, hint = said("show", cache)
    assert "check_space is embcache check; merge_caches is embcache merge" in hint


def test_the_library_names_no_command_or_option() -> None:
    """Whoever calls it from Python has none."""
    source = ROOT / "src" / "embcache"
    outside = [path for path in source.rglob("*.py") if path.parent.name != "cli"]
    commands = "|".join(command.name or "" for command in app.registered_commands)
    pattern = re.compile(rf"`embcache \w|embcache ({commands}) --|[\s(]--[a-z]")
    for path in outside:
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_the_app_has_completion() -> None:
    names = [option for p in typer.main.get_command(app).params for option in p.opts]
    assert "--install-completion" in names
