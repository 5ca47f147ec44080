"""What a commit would run into, found out without one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from embcache import CacheError
from embcache.store import Database, Space
from embcache.store.trial import try_commit
from tests.spaces import IDENTITY, folder, make_rows, no_hard_links, refused

FOLDERS = ("data", "_transactions", "_versions")


def everything(path: Path) -> list[Path]:
    return sorted(path.rglob("*"))


def test_nothing_is_left(open_space: Callable[..., Space], tmp_path: Path) -> None:
    space = open_space()
    space.location.try_committing()
    assert everything(tmp_path / "cache") == []
    space.add(make_rows(["a"]))
    before = everything(tmp_path / "cache")
    space.location.try_committing()
    assert everything(tmp_path / "cache") == before


@pytest.mark.parametrize("name", FOLDERS)
def test_another_users_folder_in_the_space(shared_folder: Path, name: str) -> None:
    space = Database(shared_folder, writable=True).space(IDENTITY, "m", "v")
    space.add(make_rows(["a"]))
    for one in FOLDERS:
        (folder(space) / one).chmod(0o777)
    theirs = folder(space) / name
    with (
        refused(theirs),
        pytest.raises(CacheError, match=rf"{name}: writing a file is refused there \(Permission "
                      r"denied\)\. It belongs to .* allow it .* read_only=True"),
    ):  # fmt: skip
        space.location.try_committing()
    for one in FOLDERS:
        (folder(space) / one).chmod(0o777)
    space.location.try_committing()


def test_data_that_is_not_there_yet(shared_folder: Path) -> None:
    """As after a creation without a row, or a synchronisation that leaves empty folders out."""
    space = Database(shared_folder, writable=True).space(IDENTITY, "m", "v")
    space.add(make_rows(["a"]))
    (folder(space) / "data").rename(shared_folder / "moved")
    space.location.try_committing()
    assert not (folder(space) / "data").exists()
    for one in ("_transactions", "_versions"):
        (folder(space) / one).chmod(0o777)
    with (
        refused(folder(space)),
        pytest.raises(CacheError, match=r"\.lance: making a folder is refused there"),
    ):
        space.location.try_committing()


def test_a_table_that_is_a_link_to_a_place_that_cannot_be_written(shared_folder: Path) -> None:
    space = Database(shared_folder / "disk", writable=True).space(IDENTITY, "m", "v")
    space.add(make_rows(["a"]))
    (shared_folder / "cache").mkdir()
    (shared_folder / "cache").chmod(0o777)
    (shared_folder / "cache" / folder(space).name).symlink_to(folder(space))
    linked = Database(shared_folder / "cache", writable=True).space(IDENTITY, "m", "v")
    with (
        refused(*(folder(space) / name for name in FOLDERS)),
        pytest.raises(CacheError, match=r"cache/.*writing a file is refused"),
    ):
        linked.location.try_committing()


@pytest.mark.parametrize("rows", [[], ["a"]], ids=["no table yet", "a table"])
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_no_hard_links(
    open_space: Callable[..., Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rows: list[str], number: int,
) -> None:  # fmt: skip
    space = open_space()
    if rows:
        space.add(make_rows(rows))
    before = everything(tmp_path)
    no_hard_links(monkeypatch, number)
    with pytest.raises(CacheError, match=r"a hard link is refused there \(.*gcsfuse.* local disk"):
        space.location.try_committing()
    assert everything(tmp_path) == before


def test_hard_links_that_replace_a_file(
    open_space: Callable[..., Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would commit one version, and one of them would lose its rows."""
    space = open_space()
    link = os.link

    def replace(source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        link(source, target)

    monkeypatch.setattr(os, "link", replace)
    with pytest.raises(CacheError, match=r"name that is taken is made there.*another file system"):
        space.location.try_committing()


@pytest.mark.parametrize(
    ("call", "number", "message"),
    [
        ("rename", errno.EROFS, "renaming a file .*Read-only file system.* mounted read-only"),
        ("unlink", errno.EPERM, "removing a file .*Operation not permitted.* allow it"),
    ],
)
def test_other_refusals(
    open_space: Callable[..., Space], monkeypatch: pytest.MonkeyPatch, call: str, number: int,
    message: str,
) -> None:  # fmt: skip
    """A folder to which one may only append (`chattr +a`); a disk that went read-only."""
    space = open_space()
    space.add(make_rows(["a"]))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(CacheError, match=message):
        space.location.try_committing()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_quota(
    open_space: Callable[..., Space], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    space = open_space()
    space.add(make_rows(["a"]))

    class Full:
        def __init__(self, *args: Any) -> None:
            pass

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *args: object) -> None:
            pass

        def write(self, content: bytes) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("embcache.store.trial.open", Full, raising=False)
    with pytest.raises(CacheError, match=r"writing a file is refused .* Free some space"):
        space.location.try_committing()


def test_a_folder_that_is_a_broken_link(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    (folder(space) / "data").rename(folder(space).parent / "elsewhere")
    (folder(space) / "data").symlink_to("/no/such/folder")
    with pytest.raises(CacheError, match=r"data is a symbolic link to a place where no file is"):
        space.location.try_committing()


def test_what_a_kill_leaves_is_no_data(
    open_space: Callable[..., Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each file operation: Lance lists, appends and compacts as before."""
    space = open_space()
    space.add(make_rows(["a"]))

    class Killed(BaseException):
        pass

    def kill(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", kill)
        patch.setattr(Path, "rename", kill)
        patch.setattr(Path, "unlink", lambda *_: None)
        for name in FOLDERS:
            with pytest.raises(Killed, match=r"^$"):
                patch.setattr("embcache.store.trial.COMMIT_FOLDERS", (name,))
                try_commit(folder(space))
    left = [path for path in everything(folder(space)) if "embcache-trial" in path.name]
    assert len(left) == len(FOLDERS)
    (folder(space) / ".creating-killed").mkdir()
    space.add(make_rows(["b"]))
    space.optimize(timedelta(0))
    assert len(space.refresh()) == 2 and len(open_space().refresh()) == 2
    assert [path for path in left if path.exists()] == left
