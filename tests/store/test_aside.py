from __future__ import annotations

from pathlib import Path

import pytest

from embcache.errors import CacheWriteError
from embcache.store import Location
from embcache.store.aside import Aside, has_left, left, read_ends
from tests.spaces import refused


def test_files_lie_there_as_they_lay_here(tmp_path: Path) -> None:
    table = tmp_path / "x.lance"
    for name in ("_versions/1.manifest", "data/a.lance"):
        (table / name).parent.mkdir(parents=True)
        (table / name).write_text(name)
    aside = Aside(table)
    assert aside.folder is None
    aside.move(table / "_versions" / "1.manifest")
    aside.keep(table / "data" / "a.lance")
    aside.move(table / "data" / "gone.lance")  # another process was first
    assert has_left(table) and not has_left(tmp_path / "y.lance")
    assert aside.folder is not None and left(tmp_path) == [aside.folder]
    there = aside.folder / "x.lance"
    assert (there / "_versions" / "1.manifest").read_text() == "_versions/1.manifest"
    assert (there / "data" / "a.lance").samefile(table / "data" / "a.lance")
    assert not (table / "_versions" / "1.manifest").exists()
    assert [one.name for one in Location.of(tmp_path).tables()] == ["x"]
    assert Location.of(tmp_path).caches() == []
    aside.move_table()
    assert not table.exists() and (there.parent / "rest" / "x.lance" / "data").is_dir()


def test_a_folder_that_cannot_be_written(shared_folder: Path) -> None:
    file = shared_folder / "x.lance" / "_versions" / "1.manifest"
    file.parent.mkdir(parents=True)
    file.write_text("")
    with refused(shared_folder), pytest.raises(CacheWriteError, match="cannot be set aside in"):
        Aside(shared_folder / "x.lance").move(file)
    assert file.exists()


def test_reading_the_ends_of_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3 * 2**20))
    read_ends([file, tmp_path / "removed by a compaction", tmp_path])
    with pytest.raises(OSError, match="directory"):
        read_ends([file, file / "below a file"])
