"""Exported files, read with the tools that they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import CacheError, ConfigError
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Location, Rows, Space
from embcache.tools.export import export_space
from tests.spaces import IDENTITY, folder, make_rows
from tests.store.test_damage import data_files, flip_bit
from tests.tools.test_merge import space_in, start


def filled(cache: Path, dim: int = 8) -> Space:
    space = space_in(cache)
    space.add(make_rows([f"text {i}" for i in range(60)], dim=dim, seed=1))
    other = ["other ä", 'quotes " and\nlines', "text more"]
    keys = text_keys(IDENTITY.to_bytes(), "", other)
    vectors = np.random.default_rng(2).standard_normal((3, dim)).astype(np.float32)
    space.add(Rows(keys, vectors, {"text": other, "prompt": ""}))
    return space


def read(file: Path) -> pa.Table:
    if file.suffix == ".parquet":
        return pq.read_table(file)
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_all_columns_and_the_metadata(tmp_path: Path, suffix: str) -> None:
    space = filled(tmp_path / "cache")
    report = export_space(space, tmp_path / f"all{suffix}")
    assert (report.rows, report.left_out) == (63, 0) and "63 rows" in str(report)
    table, original = read(tmp_path / f"all{suffix}"), lance.dataset(str(folder(space))).to_table()
    assert table.equals(original)
    assert table.schema.metadata[b"embcache:identity"].decode() == IDENTITY.to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"all{suffix}", "cache"]


def test_numpy_and_the_texts_beside_it(tmp_path: Path) -> None:
    space = filled(tmp_path / "cache")
    report = export_space(space, tmp_path / "all.npy")
    original = lance.dataset(str(folder(space))).to_table()
    matrix = np.load(tmp_path / "all.npy", mmap_mode="r")
    assert matrix.dtype == np.float32 and matrix.shape == (63, 8)
    assert matrix.tolist() == original["vector"].to_pylist()
    lines = (tmp_path / "all.texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == original.select(["text", "prompt"]).to_pylist()
    assert report.files == (tmp_path / "all.npy", tmp_path / "all.texts.jsonl")


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"prompt": "p: "}, 60),
        ({"prompt": ""}, 3),
        ({"contains": "text 1"}, 11),
        ({"contains": "%"}, 0),
        ({"prompt": "", "contains": "text"}, 1),
        ({"prompt": "none"}, 0),
    ],
)
def test_filters(tmp_path: Path, filters: dict[str, str], count: int) -> None:
    space = filled(tmp_path / "cache")
    for name in ("some.parquet", "some.arrow", "some.npy"):
        assert export_space(space, tmp_path / name, **filters).rows == count
    table = read(tmp_path / "some.parquet")
    assert len(table) == len(read(tmp_path / "some.arrow")) == count
    assert all(filters.get("contains", "") in text for text in table["text"].to_pylist())
    assert np.load(tmp_path / "some.npy").shape == (count, 8)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
def test_float16(tmp_path: Path, suffix: str) -> None:
    space = filled(tmp_path / "cache")
    file = tmp_path / f"half{suffix}"
    export_space(space, file, dtype="float16")
    original = lance.dataset(str(folder(space))).to_table()["vector"].to_pylist()
    expected = np.array(original, np.float32).astype(np.float16)
    if suffix == ".npy":
        found = np.load(file)
    else:
        column = read(file)["vector"].combine_chunks()
        found = column.flatten().to_numpy().reshape(63, 8)
    assert found.dtype == np.float16 and (found == expected).all()


def test_too_large_for_float16(tmp_path: Path) -> None:
    space, rows = space_in(tmp_path / "cache"), make_rows(["a"])
    rows.values[0, 0] = 1e6
    space.add(rows)
    with pytest.raises(ConfigError, match=r"1e\+06 is too large"):
        export_space(space, tmp_path / "half.npy", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_scores(tmp_path: Path) -> None:
    identity = Identity("scoring", "1", "float32")
    space = space_in(tmp_path / "cache", identity, layout=SCORES)
    queries, documents = ["q", "r", "s"], ["d one", "e", "one"]
    keys = pair_keys(identity.to_bytes(), ("", ""), queries, documents)
    scores = np.array([[1.0], [2.0], [3.0]], np.float32)
    space.add(Rows(keys, scores, {"query": queries, "document": documents}))
    assert export_space(space, tmp_path / "s.parquet", contains="one").rows == 2
    export_space(space, tmp_path / "s.npy")
    assert np.load(tmp_path / "s.npy").tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ConfigError, match="the space has no column `prompt`"):
        export_space(space, tmp_path / "p.npy", prompt="x")


def test_damaged_rows_and_duplicates_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, rows = space_in(tmp_path / "cache"), make_rows([f"{i}" for i in range(50)], dim=32)
    space.add(rows)
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(rows.values[3].tobytes()) + 9, 2)
    space.add(make_rows(["5", "6"], dim=32, seed=8))
    report = export_space(space, tmp_path / "x.npy")
    assert (report.rows, report.left_out) == (49, 1)
    assert "1 rows of" in caplog.text and "1 damaged or unreadable" in str(report)
    assert (np.load(tmp_path / "x.npy") == np.delete(rows.values, 3, 0)).all()


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_a_text_that_is_not_its_keys_is_left_out(tmp_path: Path, suffix: str) -> None:
    space = space_in(tmp_path / "cache")
    space.add(make_rows(["elephant", "b", "c"]))
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"elephant") + 2, bit=1)
    report = export_space(space, tmp_path / f"x{suffix}")
    assert (report.rows, report.left_out) == (2, 1) and "1 damaged" in str(report)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    space = filled(tmp_path / "cache")
    path = next(p for p in data_files(space) if b"other" in p.read_bytes())
    flip_bit(path, path.read_bytes().index(b"other "), 7)
    assert export_space(space, tmp_path / "x.parquet").rows == 63
    assert export_space(space, tmp_path / "y.parquet", contains="text").rows == 60
    assert export_space(space, tmp_path / "z.parquet", prompt="").rows == 0


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    space = filled(tmp_path / "cache")
    (tmp_path / "x.texts.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"x.texts.jsonl exists.*overwrite=True"):
        export_space(space, tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()
    export_space(space, tmp_path / "x.npy", overwrite=True)
    assert np.load(tmp_path / "x.npy").shape == (63, 8)


def test_what_cannot_work(tmp_path: Path) -> None:
    space = filled(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"ends in none of \.parquet, \.arrow, \.npy"):
        export_space(space, tmp_path / "x.csv")
    dtype: Any = "int8"
    with pytest.raises(ConfigError, match="dtype='int8' is unknown"):
        export_space(space, tmp_path / "x.npy", dtype=dtype)
    with pytest.raises(ConfigError, match="is no space"):
        export_space(Space(Location.of(tmp_path)), tmp_path / "x.npy")
    with pytest.raises(CacheError, match="cannot be written"):
        export_space(space, tmp_path / "none" / "x.npy")
    hidden = space_in(tmp_path / "hidden", store_text=False)
    hidden.add(make_rows(["a"]))
    with pytest.raises(ConfigError, match="the space has no texts"):
        export_space(hidden, tmp_path / "x.npy", contains="a")
    export_space(hidden, tmp_path / "x.npy")
    assert (tmp_path / "x.texts.jsonl").read_text() == "{}\n"


def test_an_empty_space(tmp_path: Path) -> None:
    space, rows = space_in(tmp_path / "cache"), make_rows(["a"])
    space.add(rows)
    space.drop(rows.keys)
    for name in ("x.parquet", "x.arrow", "x.npy"):
        assert export_space(space, tmp_path / name).rows == 0
    assert len(read(tmp_path / "x.parquet")) == len(read(tmp_path / "x.arrow")) == 0
    assert np.load(tmp_path / "x.npy").shape == (0, 8)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".arrow", ".parquet"])
def test_memory_does_not_grow_with_the_space(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 0.5 kB: 190 MB more of them take far less than that."""
    # glibc keeps freed memory for each thread of Lance, more or less by chance.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    code = (
        "import sys; from embcache import Cache\n"
        "Cache(sys.argv[1]).space().export(sys.argv[2])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for part in range(8):
        space = space_in(tmp_path / "cache")
        texts = [f"{part} {i}" for i in range(50_000)]
        space.add(make_rows(texts, dim=128, seed=part))
        if part in (0, 7):
            process = start(code, tmp_path / "cache", tmp_path / f"x{part}{suffix}")
            peaks.append(int(process.communicate(timeout=120)[0]))
    assert (tmp_path / f"x7{suffix}").stat().st_size > 150e6
    assert peaks[1] - peaks[0] < 100_000, peaks  # kB
