"""Tables from someone else stay in their folders, or are refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lance
import pytest

from embcache import CacheError, ConfigError, EmbcacheError
from embcache.cache import Cache
from embcache.store import Database, Location, Space
from embcache.store.untrusted import check_folder
from embcache.tools.find import find_space
from tests.spaces import IDENTITY, folder, make_rows

OLD = 1e9  # seconds since 1970: long before what Lance takes for a write in progress
PRECIOUS = ("a.lance", "b.txt", "deep/c.bin", "d.manifest")


@pytest.fixture
def space(open_space: Callable[..., Space]) -> Space:
    space = open_space()
    for i in range(3):
        space.add(make_rows([f"text {i} {j}" for j in range(5)], seed=i))
    return space


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's files, which no command may touch."""
    for name in PRECIOUS:
        file = tmp_path / "outside" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
        os.utime(file, (OLD, OLD))
    return tmp_path / "outside"


def again(space: Space) -> Space:
    """Another process's handle."""
    database = Database(folder(space).parent, writable=True)
    return database.space(IDENTITY, IDENTITY.model, "vllm 1.0")


@pytest.mark.parametrize(
    "where", ["data/sub", "_deletions", "_indices/x", "extra", "_canaries.lance"]
)
def test_a_linked_folder_is_refused_and_nothing_behind_it_is_touched(
    where: str, space: Space, outside: Path
) -> None:
    """Measured: with these links, Lance's clean-up empties the folder that they point to."""
    (folder(space) / where).parent.mkdir(exist_ok=True)
    (folder(space) / where).symlink_to(outside)
    cache = Cache(folder(space).parent)
    refused = pytest.raises(CacheError, match=r"is not opened: .* is a symbolic link to a folder")
    with refused:
        again(space).refresh()
    with refused:
        again(space).location.try_committing()
    with refused:
        find_space("organization", cache.location)
    with refused:
        cache.spaces()[0].compact(older_than=timedelta(0))
    assert all((outside / name).read_text() == "precious" for name in PRECIOUS)


def test_the_reason_that_is_given_is_true(space: Space, outside: Path) -> None:
    """Lance follows links: where it no longer does, the rule can go."""
    (folder(space) / "data" / "sub").symlink_to(outside)
    lance.dataset(str(folder(space))).cleanup_old_versions(timedelta(0), delete_unverified=True)
    assert not (outside / "a.lance").exists() and (outside / "b.txt").exists()


def test_a_linked_table_is_followed_and_not_removed(space: Space, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / folder(space).name).symlink_to(folder(space))
    other = Database(tmp_path / "other", writable=True).space(IDENTITY, "m", "v")
    other.add(make_rows(["new"]))
    with pytest.raises(CacheError, match="is a link or no table's folder"):
        other.location.remove()
    assert len(again(space).refresh()) == 16


def test_a_linked_table_obeys_the_same_rules(space: Space, tmp_path: Path, outside: Path) -> None:
    (folder(space) / "data" / "sub").symlink_to(outside)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / folder(space).name).symlink_to(folder(space))
    with pytest.raises(CacheError, match="data/sub is a symbolic link to a folder"):
        Cache(tmp_path / "other").spaces()


def test_no_table_is_created_where_a_link_points_to(tmp_path: Path, outside: Path) -> None:
    space = Database(tmp_path / "cache", writable=True).space(IDENTITY, "m", "v")
    folder(space).symlink_to(outside)
    refused = pytest.raises(CacheError, match="is a symbolic link to a folder")
    with refused:
        space.add(make_rows(["new"]))
    with refused:
        space.location.try_committing()
    assert sorted(path.name for path in outside.iterdir()) == [
        "a.lance",
        "b.txt",
        "d.manifest",
        "deep",
    ]


def test_a_linked_file_is_read_and_its_rows_are_checked(space: Space, tmp_path: Path) -> None:
    """As DVC and git-annex have them."""
    for file in (folder(space) / "data").iterdir():
        moved = file.rename(tmp_path / file.name)
        file.symlink_to(moved)
    assert Cache(folder(space).parent).spaces()[0].check().ok
    again(space).optimize(timedelta(0))
    assert len(list(tmp_path.glob("*.lance"))) == 3 and len(again(space).refresh()) == 15


def test_a_pipe_is_refused_and_not_waited_for(space: Space) -> None:
    (file, *_) = (folder(space) / "data").iterdir()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CacheError, match=rf"{file.name} is no file"):
        again(space).refresh()


def test_a_link_to_itself_is_refused(space: Space) -> None:
    (file, *_) = (folder(space) / "data").iterdir()
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(CacheError, match=rf"{file.name} is a symbolic link to a place where no"):
        again(space).refresh()


def test_a_hint_larger_than_memory_is_refused_and_can_go(space: Space) -> None:
    """Measured: Lance asks for all of it at once, and the process aborts."""
    hint = folder(space) / "_versions" / "latest_version_hint.json"
    os.truncate(hint, 2**37)
    with pytest.raises(CacheError, match=r"hint.json has 137,438,953,472 bytes.* Remove that file"):
        again(space).refresh()
    hint.unlink()
    assert len(again(space).refresh()) == 15


def test_rows_elsewhere_are_refused(space: Space, tmp_path: Path) -> None:
    """A shallow clone's manifest names another folder; it could name a place in the network."""
    clone = tmp_path / "clone" / folder(space).name
    clone.parent.mkdir()
    lance.dataset(str(folder(space))).shallow_clone(str(clone), 2)
    with pytest.raises(CacheError, match=r"its manifest has rows lie elsewhere, in .*/cache/"):
        Cache(clone.parent).spaces()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\x9b1mb"])
def test_a_table_with_an_unprintable_name_is_no_space(name: str, space: Space) -> None:
    hostile = folder(space).rename(
        folder(space).with_name(f"{name}--{IDENTITY.fingerprint()}.lance")
    )
    assert len(Cache(hostile.parent)) == 0
    with pytest.raises(EmbcacheError, match=r"no name of a table|Lance refuses in"):
        find_space(hostile)
    space = again(space)
    space.add(make_rows(["new"]))  # in a table of its own
    assert len(space.refresh()) == 1 and folder(space) != hostile


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "a\0b"])
def test_no_table_is_outside_of_the_cache(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name of a table"):
        Location.of(tmp_path).table(name)


def test_what_cannot_be_looked_at_is_refused(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in folders in folders, say."""

    def refuse(path: str) -> None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CacheError, match=r"cannot be looked at: File name too long\."):
        check_folder(folder(space))


@pytest.mark.parametrize("rows", [-1, 2**40, 2**63, 2**64 - 1])
def test_more_rows_than_there_can_be(
    rows: int, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = SimpleNamespace(metadata=SimpleNamespace(num_rows=rows))
    monkeypatch.setattr(lance.LanceDataset, "get_fragments", lambda self: [fragment])
    with pytest.raises(CacheError, match=r"The manifest of .* has -?[0-9,]+ rows"):
        again(space).open()
