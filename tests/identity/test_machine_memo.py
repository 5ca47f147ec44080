from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from embcache.identity.machine_memo import Memo, default_path


def test_remembers_across_objects(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memo.sqlite"
    assert Memo(path).get("a") is None
    Memo(path).put("a", "1")
    Memo(path).put("a", "2")
    assert Memo(path).get("a") == "2"


def write(path: Path, number: int) -> None:
    for i in range(20):
        Memo(path).put(f"{number} {i}", "x")


def test_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "memo.sqlite"
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(write, [path] * 3, range(3)))
    assert all(Memo(path).get(f"{n} {i}") == "x" for n in range(3) for i in range(20))


def test_a_place_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    memo = Memo(tmp_path / "file" / "memo.sqlite")
    with caplog.at_level(logging.WARNING):
        memo.put("a", "1")
        assert memo.get("a") is None
    assert [r.message.count("Set EMBCACHE_HOME") for r in caplog.records] == [1]


def test_a_file_that_is_no_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "memo.sqlite").write_text("not a database, and long enough to be read as one" * 9)
    assert Memo(tmp_path / "memo.sqlite").get("a") is None
    assert "file is not a database" in caplog.text


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBCACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "memo.sqlite"
    monkeypatch.delenv("EMBCACHE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_path() == tmp_path / "xdg" / "embcache" / "memo.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "embcache" / "memo.sqlite"
