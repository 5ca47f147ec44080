from __future__ import annotations

import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from embcache import CacheError, CacheFormatError, ConfigError
from embcache.store import Database
from tests.spaces import IDENTITY, folder, make_rows


def test_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_text("")
    with pytest.raises(CacheError, match=r"cache_path='.*cache' is a file"):
        Database(path, writable=False)


@pytest.mark.parametrize("writable", [False, True])
def test_a_table_is_no_cache(tmp_path: Path, writable: bool) -> None:
    """A space has a table of canaries in it, which would be taken for a space."""
    space = Database(tmp_path, writable=True).space(IDENTITY, "m", "e")
    space.add(make_rows(["a"]))
    with pytest.raises(
        CacheError, match=rf"\.lance is a table's folder .* its cache is {tmp_path}\."
    ):
        Database(space.location, writable=writable)
    Database(tmp_path / "called.lance", writable=writable)


@pytest.mark.parametrize("path", ["/proc/embcache", "/dev/null/cache"])
def test_path_that_cannot_be_written(path: str) -> None:
    with pytest.raises(CacheError, match="cannot be written"):
        Database(path, writable=True)


def test_path_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written: Not a directory"):
        Database(tmp_path / "file" / "cache", writable=True)


def test_read_only_makes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "cache", writable=False)
    assert list(database.spaces()) == [] and not (tmp_path / "cache").exists()


def test_urls_of_no_store_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache_path is a URL of ftp:, and a cache is"):
        Database("ftp://bucket/cache", writable=True)


def test_spaces_and_their_dtypes(tmp_path: Path) -> None:
    database = Database(tmp_path, writable=True)
    for dtype in ("float32", "bfloat16"):
        identity = IDENTITY.with_dtype(dtype)
        space = database.space(identity, identity.model, "vllm 1.0", store_text=True)
        space.add(make_rows(["a"], identity=identity))
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "other.lance"))
    names = [folder(info).name for info in database.spaces()]
    assert [name.rsplit("--", 1)[0] for name in names] == [
        "organization--name--bfloat16",
        "organization--name--float32",
    ]
    assert database.cached_dtypes(IDENTITY.with_dtype("auto")) == ["bfloat16", "float32"]


def test_a_newer_space_is_not_passed_over(tmp_path: Path) -> None:
    database = Database(tmp_path, writable=True)
    space = database.space(IDENTITY, "m", "v", store_text=True)
    space.add(make_rows(["a"]))
    lance.dataset(str(folder(space))).update_schema_metadata({"embcache:format_version": "9"})
    with pytest.raises(CacheFormatError, match="format version 9"):
        database.cached_dtypes(IDENTITY)


def test_a_directory_that_moved_keeps_its_space(tmp_path: Path) -> None:
    database = Database(tmp_path / "cache", writable=True)
    database.space(IDENTITY, "/a/old", "v", store_text=True).add(make_rows(["a"]))
    space = database.space(IDENTITY, "/b/new", "v", store_text=True)
    assert len(space.refresh()) == 1 and space.name.startswith("a--old--float32--")


def test_a_copied_cache_works(tmp_path: Path) -> None:
    Database(tmp_path / "one", writable=True).space(IDENTITY, "m", "v", store_text=True).add(
        make_rows(["a"])
    )
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    space = Database(tmp_path / "two", writable=False).space(IDENTITY, "m", "v", store_text=True)
    assert len(space.refresh()) == 1
