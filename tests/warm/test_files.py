"""What a folder holds is read or named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from embcache import ConfigError, InputError
from embcache.warm.files import find_files
from embcache.warm.formats import FORMATS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(folder: Path, kind: str = "jsonl") -> list[str]:
    return [str(path.relative_to(folder)) for path in find_files([str(folder)], kind)]


def test_all_endings_in_any_case_compressed_or_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [
        "a.jsonl",
        "b.JSONL",
        "c.json.gz",
        "d.ndjson.gz",
        "e.Json",
        "f.jsonl.xz",
        "g.ndjson.BZ2",
    ]
    fill(folder, *names, "deep/er/h.jsonl.zst")
    assert found(folder) == sorted([*names, "deep/er/h.jsonl.zst"]) and not caplog.records
    fill(folder, "x.TSV", "x.tab.gz", "x.csv.xz", "x.PARQUET", "x.pq", "x.Feather")
    assert found(folder, "tsv") == ["x.TSV", "x.tab.gz"] and found(folder, "csv") == ["x.csv.xz"]
    assert found(folder, "parquet") == ["x.PARQUET", "x.pq"]
    assert found(folder, "arrow") == ["x.Feather"]


def test_what_is_not_read_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(folder, "a.jsonl", "b.csv", "c.txt", "sub/part-00000", "sub/x.zip", "sub/y.jsonl.lz4")
    with caplog.at_level(logging.WARNING):
        assert found(folder) == ["a.jsonl"]
    [record] = caplog.records
    expected = (
        f"{folder}: 1 of its files read as jsonl; not read: b.csv, c.txt, sub/part-00000, "
        "sub/x.zip, sub/y.jsonl.lz4"
    )
    assert record.getMessage() == expected
    caplog.clear()
    fill(folder, "d.txt", "dataset_info.json")
    found(folder)
    assert caplog.records[0].getMessage().endswith("dataset_info.json, sub/part-00000 and 2 more")


def test_hidden_files_and_folders_are_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(folder, "a.parquet", "._a.parquet", ".git/x.parquet", ".DS_Store", "_SUCCESS", "_metadata")
    assert found(folder, "parquet") == ["a.parquet"] and not caplog.records
    fill(folder, "_temporary/0/part-0.parquet", "_b.parquet", "year=2024/c.parquet")
    assert found(folder, "parquet") == ["a.parquet", "year=2024/c.parquet"]
    assert caplog.records[0].getMessage().endswith("not read: _b.parquet, _temporary")


def test_links_are_followed_and_loops_end(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "b.jsonl")
    fill(folder, "a.jsonl", "sub/c.jsonl")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "d.jsonl").symlink_to(folder / "a.jsonl")
    assert found(folder) == ["a.jsonl", "linked/b.jsonl", "sub/c.jsonl", "sub/d.jsonl"]


def test_pipes_and_broken_links_in_a_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe that nobody writes to would block; a link to nothing is an error when it is read."""
    fill(folder, "a.jsonl")
    os.mkfifo(folder / "b.jsonl")
    (folder / "c.jsonl").symlink_to(folder / "nothing")
    assert found(folder) == ["a.jsonl", "c.jsonl"]
    assert caplog.records[0].getMessage().endswith("not read: b.jsonl")


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, "sub/a.jsonl")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"sub cannot be listed.*Permission denied"):
        found(folder)


def test_globs(folder: Path, tmp_path: Path) -> None:
    fill(
        folder,
        "a.parquet/part-0.parquet",
        "a.parquet/_SUCCESS",
        "b.parquet",
        "_c.parquet",
        "part-1",
    )
    names = [str(p.relative_to(folder)) for p in find_files([f"{folder}/*.parquet"], "parquet")]
    assert names == ["a.parquet/part-0.parquet", "b.parquet"]
    assert [p.name for p in find_files([f"{folder}/part-*"], "jsonl")] == ["part-1"]
    assert [p.name for p in find_files([f"{folder}/_c*"], "parquet")] == ["_c.parquet"]
    assert len(find_files([f"{folder}/**"], "parquet")) == len(
        set(find_files([f"{folder}/**"], "parquet"))
    )


def test_tables_are_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.lance", "sub/B.LANCE", "_g.lance", ".h.lance", "named-otherwise"):
        fill(folder, f"{name}/_versions/1.manifest", f"{name}/data/x.lance")
    fill(folder, "c.jsonl", "d.lance", "e.lance/f.jsonl")
    assert found(folder, "lance") == ["a.lance", "sub/B.LANCE"]
    [warning] = caplog.records
    assert warning.getMessage().endswith(
        "2 of its files read as lance; not read: _g.lance, c.jsonl, d.lance, e.lance/f.jsonl, "
        "named-otherwise/_versions and 1 more"
    )
    assert found(folder) == ["c.jsonl", "e.lance/f.jsonl"]
    assert "not read: _g.lance, a.lance, d.lance, named-" in caplog.records[1].getMessage()
    for pattern, expected in (
        ("*.lance", ["a.lance"]),
        ("**", ["a.lance", "B.LANCE", "named-otherwise"]),
        ("named-otherwise", ["named-otherwise"]),  # one that is named may be called as it likes
        ("a.lance/", ["a.lance"]),
    ):
        assert [p.name for p in find_files([f"{folder}/{pattern}"], "lance")] == expected


def test_a_name_that_looks_like_a_glob(folder: Path) -> None:
    fill(folder, "data[1].jsonl", "data1.jsonl")
    assert [p.name for p in find_files([f"{folder}/data[1].jsonl"], "jsonl")] == ["data[1].jsonl"]


@pytest.mark.parametrize("pattern", ["nothing.jsonl", "*.none", "."])
def test_no_such_file(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no such jsonl file"):
        find_files([pattern], "jsonl")


def test_standard_input_among_files(folder: Path) -> None:
    fill(folder, "a.jsonl")
    files = find_files(["-", str(folder), str(folder / "a.jsonl")], "jsonl")
    assert [path.name for path in files] == ["-", "a.jsonl", "a.jsonl"]
    with pytest.raises(ConfigError, match="- is named twice"):
        find_files(["-", str(folder), "-"], "jsonl")


def test_a_file_that_is_called_like_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "-")
    monkeypatch.chdir(folder)
    assert find_files(["./-"], "jsonl") == [folder / "-"]


def test_no_ending_is_of_two_formats() -> None:
    endings = [ending for ending_s in FORMATS.values() for ending in ending_s]
    assert len(endings) == len(set(endings))
