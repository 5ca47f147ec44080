"""Importing: round trips bit for bit; what is not what it says is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mteb.models.cache_wrappers.cache_backends.numpy_cache import NumpyCache

from embcache import CacheError, CacheFormatError, ConfigError, InputError, LanceCache
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows, Space
from embcache.tools.check import check_space
from embcache.tools.export import export_space
from embcache.tools.import_ import import_file, import_numpy_cache
from tests.spaces import IDENTITY, folder, make_rows, no_hard_links, read_all
from tests.tools.test_export import filled
from tests.tools.test_merge import space_in


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_round_trip_is_bit_identical(tmp_path: Path, suffix: str) -> None:
    space = filled(tmp_path / "a")
    file = tmp_path / f"x{suffix}"
    export_space(space, file)
    report = import_file(file, tmp_path / "b")
    assert (report.rows, report.added, report.present, report.refused) == (63, 63, 0, 0)
    assert str(report) == f"{space.name}: 63 of 63 rows added, 0 there already"
    tables = [
        lance.dataset(str(tmp_path / cache / folder(space).name)).to_table() for cache in ("a", "b")
    ]
    assert tables[0].equals(tables[1], check_metadata=True)
    again = import_file(file, tmp_path / "b")
    assert (again.added, again.present) == (0, 63)


def test_scores_round_trip(tmp_path: Path) -> None:
    identity = Identity("scoring", "1", "float32")
    space = space_in(tmp_path / "a", identity, layout=SCORES)
    keys = pair_keys(identity.to_bytes(), ("", ""), ["q", "r"], ["d", "e"])
    columns = {"query": ["q", "r"], "document": ["d", "e"], "query_prefix": ""}
    scores = Rows(keys, np.array([[1.5], [2]], np.float32), columns | {"document_prefix": ""})
    space.add(scores)
    export_space(space, tmp_path / "x.parquet")
    assert import_file(tmp_path / "x.parquet", tmp_path / "b").added == 2
    merged = space_in(tmp_path / "b", identity)
    assert merged.layout is SCORES
    assert (read_all(merged, scores)[0] == scores.values).all()


def test_tampered_rows_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = filled(tmp_path / "a")
    export_space(space, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    rows = table.to_pylist()
    rows[3]["vector"][0] += 1  # checksum fails
    rows[7]["text"] = "changed"  # key fails
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(changed, tmp_path / "x.parquet")
    report = import_file(tmp_path / "x.parquet", tmp_path / "b")
    assert (report.added, report.refused) == (61, 2)
    assert "2 rows of" in caplog.text and "2 refused" in str(report)
    assert check_space(Space(report.location)).ok


def test_float16_is_refused(tmp_path: Path) -> None:
    space = filled(tmp_path / "a")
    for name in ("x.parquet", "x.arrow"):
        export_space(space, tmp_path / name, dtype="float16")
        with pytest.raises(ConfigError, match=r"float16 values: they are rounded"):
            import_file(tmp_path / name, tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.lance"))


def test_files_that_export_did_not_write(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(CacheFormatError, match="no `export` of embcache wrote it"):
        import_file(tmp_path / "foreign.parquet", tmp_path / "b")
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"ends in neither \.parquet nor \.arrow.* has no keys"):
        import_file(tmp_path / "x.npy", tmp_path / "b")
    with pytest.raises(CacheError, match=r"none\.parquet is no file \(working directory: "):
        import_file(tmp_path / "none.parquet", tmp_path / "b")
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1" + b"\0" * 100)
    with pytest.raises(CacheError, match="cannot be read"):
        import_file(tmp_path / "broken.arrow", tmp_path / "b")
    space = filled(tmp_path / "a")
    export_space(space, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.drop_columns(["checksum"]), tmp_path / "x.parquet")
    with pytest.raises(CacheFormatError, match="has no column checksum"):
        import_file(tmp_path / "x.parquet", tmp_path / "b")
    wide = table.set_column(2, "checksum", table["checksum"].cast(pa.string()))
    pq.write_table(wide, tmp_path / "x.parquet")
    with pytest.raises(CacheFormatError, match=r"not uint64\. Give the file as `export` wrote it"):
        import_file(tmp_path / "x.parquet", tmp_path / "b")


def test_lance_caches_are_refused(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path / "a")
    cache.add([{"text": "a"}], np.ones((1, 2), np.float32))
    cache.save()
    (info,) = Database(tmp_path / "a", writable=False).spaces()
    export_space(info, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="was written by LanceCache"):
        import_file(tmp_path / "x.parquet", tmp_path / "b")


def numpy_cache(folder: Path, texts: list[str], dim: int = 8) -> np.ndarray:
    vectors = make_rows(texts, dim=dim).values
    cache = NumpyCache(folder, initial_vectors=len(texts))
    cache.add([{"text": text} for text in texts], vectors)
    cache.save()
    cache.close()
    return vectors


def test_numpy_cache(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(5000)]
    vectors = numpy_cache(tmp_path / "numpy", texts)
    wanted = ["unknown", *texts, texts[0]]
    report = import_numpy_cache(
        tmp_path / "numpy", tmp_path / "b", IDENTITY, iter(wanted), prompt="p: ", model="Name"
    )
    assert (report.added, report.unknown, report.refused) == (5000, 1, 0)
    assert "1 texts not in the folder" in str(report)
    space = space_in(tmp_path / "b")
    rows = make_rows(texts)
    found, failed = read_all(space, rows)
    assert not failed.any() and found.tobytes() == vectors.tobytes()
    assert check_space(space).ok and space.name.startswith("Name--float32--")
    again = import_numpy_cache(tmp_path / "numpy", tmp_path / "b", IDENTITY, texts, prompt="p: ")
    assert (again.rows, again.added, again.present) == (5000, 0, 5000)


def test_numpy_cache_with_rows_that_are_not_there_or_not_finite(tmp_path: Path) -> None:
    vectors = numpy_cache(tmp_path / "numpy", ["a", "b", "c"])
    index = json.loads((tmp_path / "numpy" / "index.json").read_text())
    index[hashlib.sha256(b"far").hexdigest()] = 1000
    (tmp_path / "numpy" / "index.json").write_text(json.dumps(index))
    vectors[1, 0] = np.nan
    vectors.tofile(tmp_path / "numpy" / "vectors.npy")
    texts = ["a", "b", "c", "far"]
    report = import_numpy_cache(tmp_path / "numpy", tmp_path / "b", IDENTITY, texts)
    assert (report.rows, report.added, report.refused, report.present) == (4, 2, 2, 0)
    keys = text_keys(IDENTITY.to_bytes(), "", texts)
    assert (space_in(tmp_path / "b").refresh().find(keys) >= 0).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_no_numpy_cache_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no NumpyCache of mteb's"):
        import_numpy_cache(tmp_path, tmp_path / "b", IDENTITY, ["a"])
    numpy_cache(tmp_path / "numpy", ["a"])
    with pytest.raises(InputError, match="lone surrogate"):
        import_numpy_cache(tmp_path / "numpy", tmp_path / "b", IDENTITY, ["\ud800"])


@pytest.mark.parametrize("there", [False, True])
def test_a_cache_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    space = filled(tmp_path / "a")
    export_space(space, tmp_path / "x.parquet")
    if there:
        import_file(tmp_path / "x.parquet", tmp_path / "b")
    no_hard_links(monkeypatch)
    with pytest.raises(CacheError, match="a hard link is refused"):
        import_file(tmp_path / "x.parquet", tmp_path / "b")


@pytest.mark.parametrize(
    ("index", "dimension"),
    [
        ("[" * 100_000, "4"),
        ("[1, 2]", "4"),
        ('"text"', "4"),
        ('{"a": "x"}', "4"),
        ('{"a": NaN}', "4"),
        ('{"a": 1e400}', "4"),
        ('{"a": true}', "4"),
        ('{"a": -3}', "4"),
        ('{"a": 123456789012345678901234567890}', "4"),
        ("{}", "-8"),
        ("{}", "0"),
        ("{}", "1" * 30),
        ("{}", "1" * 5000),
        ("{}", "4.5"),
        ("\x80", "4"),
    ],
    ids=lambda text: text[:12],
)
def test_a_hostile_numpy_cache(index: str, dimension: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(index.encode("latin-1"))
    (tmp_path / "dimension").write_text(dimension)
    (tmp_path / "vectors.npy").write_bytes(b"\x93NUMPY" + bytes(250))
    with pytest.raises(ConfigError, match=r"is no NumpyCache of mteb's: .{5,300}\. Give a folder"):
        import_numpy_cache(tmp_path, tmp_path / "cache", IDENTITY, ["a"])


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pkl", "x.parquet.gz"])
def test_files_that_could_hold_pickles_are_not_opened(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", np.array([Path("object")], dtype=object))
    (tmp_path / "made.npz").rename(tmp_path / name)
    with pytest.raises(ConfigError, match=r"ends in neither \.parquet nor \.arrow"):
        import_file(tmp_path / name, tmp_path / "cache")
