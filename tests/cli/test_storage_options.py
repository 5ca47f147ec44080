"""`--storage-option` of every command: it reaches the store, and nobody else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mteb
import pytest
import typer
from mteb.mocks.mock_tasks import MockSTSTask
from typer.testing import CliRunner

from embcache import ConfigError
from embcache.cli import apart, evaluate, options
from embcache.cli.app import app
from embcache.store import Location
from tests.cli.test_spaces import cache, folder_of
from tests.fakes import FakeEngine
from tests.object_store import Remote
from tests.spaces import make_rows
from tests.tools.test_merge import space_in

__all__ = ["cache"]

SECRET = "hush=hush-5a1f"  # a value may hold an equals sign
OPTIONS = {"aws_secret_access_key": SECRET, "aws_region": "eu-west-1"}
GIVEN = [word for name in OPTIONS for word in ("--storage-option", f"{name}={OPTIONS[name]}")]
URL = "s3://bucket/cache"
ONE_SPACE = [
    ("show", "{}"),
    ("get", "{}", "a", "--prompt", "p: "),
    ("search", "{}", "a", "--fts"),
    ("compare", "{}", "{}"),
    ("export", "{}", "x.parquet"),
    ("map", "{}", "x.parquet"),
    ("check", "{}"),
    ("compact", "{}"),
    ("rm", "{}", "--yes"),
]
A_CACHE = [
    ("ls", "{}"),
    ("check", "--cache", "{}"),
    ("compact", "--cache", "{}"),
    ("merge", "{}", "--cache", "another"),
    ("merge", "other", "--cache", "{}"),
    ("push", "{}", "--cache", "other"),
    ("push", "another", "--cache", "{}"),
    ("pull", "{}", "--cache", "another"),
    ("pull", "other", "--cache", "{}"),
    ("import", "rows.parquet", "--cache", "{}"),
    ("warm", "-m", "{model}", "--dtype", "float32", "--jsonl", "-", "--cache", "{}"),
    ("eval", "-m", "{model}", "--dtype", "float32", "-t", "x", "--cache", "{}"),
]

Opened = list[dict[str, str]]


def run(command: tuple[str, ...], place: str, *more: str, model: Path) -> Any:
    arguments = [word.format(place, model=model) for word in command]
    return CliRunner().invoke(app, [*arguments, *more], input='{"text": "a"}\n')


@pytest.fixture(autouse=True)
def _commands(cache: Path, monkeypatch: pytest.MonkeyPatch, fake_engines: list[FakeEngine]) -> None:
    """What the commands need beside a cache: another, rows to import, a task, an engine."""
    space_in(Path("other")).add(make_rows(["a"], dim=4))
    exported = CliRunner().invoke(app, ["export", str(cache), "rows.parquet"])
    assert exported.exit_code == 0
    monkeypatch.setattr(evaluate, "mteb_tasks", lambda *_: [MockSTSTask()])
    monkeypatch.setattr(mteb, "get_task", lambda *_, **__: MockSTSTask())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """URLs that are asked for a place, with their options; nothing is opened."""
    seen: list[tuple[str, Any]] = []
    of = Location.of

    def instead(path: Any, given: Any = None, **kwargs: Any) -> Location:
        if "s3:" not in str(path) or isinstance(path, Location):
            return of(path, given, **kwargs)
        seen.append((path, given))
        raise ConfigError("asked")

    monkeypatch.setattr(Location, "of", instead)
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [*ONE_SPACE, *A_CACHE], ids=" ".join)
def test_a_folder(
    command: tuple[str, ...], cache: Path, tiny_model: Path, opened_with: Opened
) -> None:
    result = run(command, str(cache), *GIVEN, model=tiny_model)
    assert result.exit_code == 0, (result.output, result.exception)
    assert SECRET not in result.output
    if command[0] != "check":  # in a process of its own, see below
        assert opened_with and all(options == OPTIONS for options in opened_with)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", A_CACHE[-2:], ids=lambda command: command[0])
def test_encoders_in_a_real_store(
    command: tuple[str, ...], tiny_model: Path, remote: Remote, fake_engines: list[FakeEngine]
) -> None:
    given = [w for pair in remote.options.items() for w in ("--storage-option", "=".join(pair))]
    results = [run(command, remote.url, *given, "--json", model=tiny_model) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    assert [engine.starts for engine in fake_engines] == [1, 0]
    secret = remote.options["aws_secret_access_key"]
    assert not any(secret in result.output for result in results)


ASKING = [one for one in (*ONE_SPACE, *A_CACHE) if one != ("check", "{}")]  # its process asks


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
@pytest.mark.parametrize("place", [URL, f"{URL}/name.lance"])
def test_a_url(
    command: tuple[str, ...], place: str, tiny_model: Path, asked: list[tuple[str, Any]]
) -> None:
    result = run(command, place, *GIVEN, model=tiny_model)
    assert result.exit_code == 1 and "error: asked" in result.stderr
    assert asked == [(place, OPTIONS)]
    assert SECRET not in result.output


def test_every_command_that_takes_a_cache_has_the_option() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        names = {option for parameter in command.params for option in parameter.opts}
        assert "--storage-option" in names, name


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([SECRET.replace("=", "-")], "number 1 is no NAME=VALUE (it is not shown"),
        (["a=b", f"={SECRET}"], "number 2 is no NAME=VALUE"),
        ([f" ={SECRET}"], "number 1 is no NAME=VALUE"),
        ([f"a={SECRET}", f"a={SECRET}2"], "--storage-option a is given twice"),
    ],
)
def test_what_is_no_pair(pairs: list[str], message: str) -> None:
    given = [word for pair in pairs for word in ("--storage-option", pair)]
    result = CliRunner().invoke(app, ["ls", *given])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert "hush" not in result.output


def test_pairs() -> None:
    assert options.store_options(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    assert options.store_options([]) is options.store_options(None) is None


@pytest.mark.parametrize("said", ["aws_region in storage_options.", "Give storage_options=."])
def test_messages_of_the_library(said: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """They speak of the argument."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConfigError(said)

    monkeypatch.setattr(Location, "of", refuse)
    result = CliRunner().invoke(app, ["ls", str(cache)])
    hint = "On the command line, storage_options is --storage-option."
    assert result.stderr.splitlines() == [f"error: {said}", hint]


def test_the_process_of_a_check_gets_them_where_nobody_looks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Command lines and environments can be read while it runs."""
    started: list[str] = []
    popen = subprocess.Popen

    def watched(*args: Any, **kwargs: Any) -> Any:
        started.append(repr(args) + repr(kwargs))
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", watched)
    (found,) = apart.check_apart(None, Location.of(cache, OPTIONS), fix=False)
    assert found.ok and len(started) == 1 and SECRET not in started[0]


@pytest.mark.parametrize("named", [True, False])
def test_the_process_of_a_check_uses_them(
    named: bool,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened_with: Opened,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spaces = [str(folder_of(cache))] if named else []
    job = apart._Job(spaces, str(cache), fix=False, storage_options=OPTIONS)
    assert SECRET not in repr(job)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(vars(job))))
    monkeypatch.setattr(apart.watch, "start", lambda *_: None)
    apart._work()
    out = capsys.readouterr().out
    assert '"report"' in out and SECRET not in out
    assert opened_with and all(options == OPTIONS for options in opened_with)


def test_a_merge_of_nothing(tmp_path: Path) -> None:
    space_in(tmp_path / "target").add(make_rows(["a"]))
    (tmp_path / "empty").mkdir()
    arguments = ["merge", str(tmp_path / "empty"), "--cache", str(tmp_path / "target"), *GIVEN]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "There is no space in" in result.stderr
    assert SECRET not in result.output
