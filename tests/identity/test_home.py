"""A user without HOME and without an entry in passwd, as containers and clusters have them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embcache import ConfigError, ModelNotFoundError
from embcache.identity.home import home_needed, user_path, working_directory
from embcache.identity.machine_memo import Memo
from embcache.identity.weights import pin_adapter, resolve_model
from embcache.maps.draw import check_target
from embcache.store import Location
from embcache.tools.import_ import import_file
from embcache.warm.sources import find_files
from tests.conftest import run_python

NOBODY = """
import os, pwd

def unknown(*_):
    raise KeyError("no such user")

pwd.getpwuid = pwd.getpwnam = unknown
for name in ("HOME", "EMBCACHE_HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)
    for name in ("HOME", "EMBCACHE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nobody")
def test_without_a_home_there_is_no_memo(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    memo = Memo()
    memo.put("a", "1")
    assert memo.get("a") is None
    (message,) = [record.message for record in caplog.records]
    assert "Could not determine home directory" in message and "Set EMBCACHE_HOME" in message
    here = Memo(tmp_path / "memo.sqlite")
    here.put("a", "1")
    assert here.get("a") == "1"


def test_the_memo_of_a_home_that_is_written_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a file of variables no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EMBCACHE_HOME", "~/memo")
    Memo().put("a", "1")
    assert (tmp_path / "memo" / "memo.sqlite").is_file()


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("path", ["~/x.parquet", "~somebody/x.parquet"])
@pytest.mark.parametrize(
    "use",
    [
        Location.of,
        lambda path: Location.of("/cache").within(path),
        resolve_model,
        lambda path: pin_adapter(path, Memo()),
        lambda path: import_file(path, "cache"),
        lambda path: find_files([path], "parquet"),
        lambda path: check_target(path, overwrite=False),
        lambda path: user_path(path, "target"),
    ],
)
def test_a_path_in_a_home_that_nobody_knows(use: Callable[[str], Any], path: str) -> None:
    with pytest.raises(ConfigError, match=rf"='{path}': .*home directory\. Write it out"):
        use(path)


@pytest.mark.usefixtures("nobody")
def test_what_fails_for_want_of_a_home() -> None:
    with (
        pytest.raises(ConfigError, match=rf"user {os.getuid()} has no entry .* Set HOME"),
        home_needed(),
    ):
        Path.home()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="CUDA error"), home_needed():
        raise RuntimeError("CUDA error")


def test_mteb_without_a_home(tmp_path: Path) -> None:
    """mteb's own import fails; what needs no mteb works."""
    code = f"""
import embcache
print(list(embcache.Cache({str(tmp_path)!r}).spaces()))
for name in ("VllmEncoderWrapper", "CachedEncoder"):
    try:
        getattr(embcache, name)(object())
    except embcache.ConfigError as error:
        print(name, error)
"""
    out = run_python(NOBODY + code)
    assert "[]" in out
    assert (
        f"VllmEncoderWrapper There is no home folder: HOME is not set, and user {os.getuid()}"
        in out
    )


def test_commands_without_a_home(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    code = f"""
import sys
from embcache.cli.app import app
for line in (["ls", {str(tmp_path)!r}], ["warm", "--model", {str(tiny_model)!r}, "--cache",
             {str(tmp_path / "cache")!r}, "--jsonl", {str(tmp_path / "a.jsonl")!r}]):
    try:
        app(line)
    except SystemExit as end:
        print(line[0], end.code)
"""
    out = run_python(NOBODY + "sys.stderr = sys.stdout\n" + code)
    assert "ls 0" in out and "warm 1" in out and "Traceback" not in out
    assert "error: There is no home folder" in out


def test_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert working_directory() == os.getcwd()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ModelNotFoundError, match=r"\(working directory: one that was removed\)"):
        resolve_model("no model/of/any hub", None)
