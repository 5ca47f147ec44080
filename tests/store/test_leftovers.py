from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from embcache.store import Space
from embcache.store.leftovers import AGE, remove_leftovers
from tests.spaces import folder, make_rows

Open = Callable[..., Space]


def age(*paths: Path) -> None:
    then = time.time() - AGE.total_seconds() - 60
    for path in paths:
        os.utime(path, (then, then), follow_symlinks=False)


def test_by_age_and_nothing_else(tmp_path: Path) -> None:
    names = [".creating-a", ".removed-b", "data/.embcache-trial-c", "_versions/.embcache-trial-d"]
    kept = ["table.lance", "data/x.lance", ".hidden", "creating-z"]
    for name in (*names, *kept, ".creating-new"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x")
    age(*(tmp_path / name for name in (*names, *kept)))
    assert sorted(remove_leftovers(tmp_path)) == sorted(tmp_path / name for name in names)
    assert all((tmp_path / name / "file").exists() for name in (*kept, ".creating-new"))


def test_files_and_links_go_and_what_a_link_names_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / ".removed-link").symlink_to(tmp_path / "precious")
    (tmp_path / ".creating-file").write_text("x")
    age(tmp_path / ".removed-link", tmp_path / ".creating-file")
    assert len(remove_leftovers(tmp_path)) == 2
    assert (tmp_path / "precious" / "file").exists()


def test_age_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / ".creating-x").mkdir()
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path, timedelta(seconds=-60)) == [tmp_path / ".creating-x"]


def test_a_new_space_sweeps_the_cache(open_space: Open) -> None:
    space = open_space()
    left = folder(space).parent / ".creating-killed"
    (left / "t.lance" / "data").mkdir(parents=True)
    age(left)
    space.add(make_rows(["a"]))
    assert not left.exists()


def test_what_a_killed_removal_leaves_goes(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the same names under which it is made."""
    space = open_space()
    cache = folder(space).parent
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory._rmtree", lambda *_, **__: None)
        space.add(make_rows(["a"]))
        space.location.remove()
    left = [path for path in cache.iterdir() if path.name.startswith(".")]
    assert len(left) >= 1 and not space.location.has_table()
    age(*left)
    assert sorted(remove_leftovers(cache)) == sorted(left)
    space.add(make_rows(["a"]))
    assert len(space.refresh()) == 1


def test_what_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".embcache-trial-x"
    left.write_text("x")
    age(left)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert remove_leftovers(tmp_path) == [] and left.exists()
