"""Places of caches and tables: what is refused, what is made, what is removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embcache import CacheError, ConfigError, UnreachableError
from embcache.store import Database, Location, Space, manifests
from tests.spaces import IDENTITY, folder, make_rows


def test_remove(open_space: Callable[..., Space], tmp_path: Path) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    link = tmp_path / "link.lance"
    link.symlink_to(folder(space))
    with pytest.raises(CacheError, match="is a link"):
        Location.of(link).remove()
    with pytest.raises(CacheError, match="no table's folder"):
        space.location.parent.remove()
    space.location.remove()
    assert list(folder(space).parent.iterdir()) == []
    with pytest.raises(CacheError, match="No such file"):
        space.location.remove()
    assert list(folder(space).parent.iterdir()) == []


def test_relative_paths_are_settled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.of("cache")
    monkeypatch.chdir("/")
    assert str(location) == str(tmp_path / "cache")
    assert Location.of(location) is location
    assert str(Location.of("~/x")) == str(Path.home() / "x")


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        (
            "cache",
            {"timeout": 30},
            r"storage_options\['timeout'\] is a int; both must be texts",
        ),
        ("cache", {3: "a"}, r"storage_options\[3\] is a str; both must be texts"),
        ("cache", ["a=b"], "storage_options is a list. Give a dict of texts by name"),
    ],
)
def test_options_are_texts_by_name(path: str, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Location.of(path, options)


def test_no_place_at_all() -> None:
    with pytest.raises(ConfigError, match="space is empty"):
        Location.of("", argument="space")
    with pytest.raises(ConfigError, match=r"cache_path='~nobody-of-that-name/x': .* Write it out"):
        Location.of("~nobody-of-that-name/x")


@pytest.mark.parametrize("name", ["a\0b", "two\nlines", "a\tb", "\x7f", os.fsdecode(b"\xff")])
def test_names_that_lance_refuses(name: str) -> None:
    """Before anything is encoded, not when it is to be written."""
    with pytest.raises(ConfigError, match="in its absolute path, which Lance refuses"):
        Location.of(name)


@pytest.mark.parametrize("name", ["a b", "東京", "a%20b", "a#b", "a?b", "*[a]", "a\\b", "\u202ea"])
def test_names_that_are_unusual(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = Database(f"x/../{name}/", writable=True).space(IDENTITY, "m", "v")
    space.add(make_rows(["a"]))
    assert len(Database(tmp_path / name, writable=False).space(IDENTITY, "m", "v").refresh()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "x"] == [name]


def test_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="cache_path='cache' is relative, and the working direc"):
        Location.of("cache")
    assert str(Location.of(tmp_path)) == str(tmp_path)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("not-mounted")
    (tmp_path / "circle").symlink_to("circle")
    for name, target in (("link", "not-mounted"), ("circle", "circle")):
        with pytest.raises(CacheError, match=f"is a symbolic link to .* nothing is: '{target}'"):
            Database(tmp_path / name, writable=True)
    (tmp_path / "not-mounted").mkdir()
    Database(tmp_path / "link", writable=True)


def test_secrets_are_not_shown() -> None:
    location = Location.of("cache", {"secret": "hush"})
    assert "hush" not in repr(location) and "hush" not in str(location)
    assert location.table("a").storage_options == location.table("a").parent.storage_options


def test_tables_are_what_was_committed_to(open_space: Callable[..., Space], tmp_path: Path) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    (tmp_path / "cache" / "killed.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "cache" / "file.lance").write_text("")
    assert [str(one) for one in Location.of(tmp_path / "cache").tables()] == [str(space.location)]
    assert Location.of(tmp_path / "no such folder").tables() == []


def test_size_of_files_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process compacts while this one counts."""
    (tmp_path / "stays").write_bytes(b"12345")
    monkeypatch.setattr("os.walk", lambda path: [(str(path), [], ["gone", "stays"])])
    assert Location.of(tmp_path).size() == 5


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 25)])
def test_a_name_that_is_too_long_is_an_error_of_embcaches(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match=r"(cannot be looked into|written): File name too long"):
        Database(tmp_path / name, writable=True)


def test_what_the_system_refuses_to_show_is_an_error_of_embcaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(manifests, "has_manifest", refuse)
    with pytest.raises(UnreachableError, match=r"a\.lance cannot be looked into: Input/output err"):
        Location.of(tmp_path / "a.lance").has_table()
