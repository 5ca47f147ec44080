"""Tables that say they are spaces, with columns that are not: one error in words, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import CacheFormatError
from embcache.cache import Cache
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import VECTORS, Database
from embcache.store.schema import SpaceMetadata, space_schema
from embcache.tools.check import check_space
from tests.fakes import FakeEngine
from tests.spaces import IDENTITY, make_rows

METADATA = SpaceMetadata(IDENTITY, IDENTITY.model, "vllm 1.0", "0.1.0")
SCHEMA = space_schema(VECTORS, 8, METADATA, store_text=True)
GOOD = make_rows(["a", "b", "c"]).to_arrow(SCHEMA, store_text=True)


def other(name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
    """The good table with another column in one's place."""
    column = values if isinstance(values, pa.Array) else pa.array(values, kind)
    table = GOOD.set_column(GOOD.column_names.index(name), pa.field(name, column.type), column)
    return table.replace_schema_metadata(SCHEMA.metadata)


def as_scores(table: pa.Table) -> pa.Table:
    names = ["score" if name == "vector" else name for name in table.column_names]
    return table.rename_columns(names).replace_schema_metadata(SCHEMA.metadata)


REFUSED = {
    "vector missing": (GOOD.drop_columns(["vector"]), "columns are missing: vector"),
    "key missing": (GOOD.drop_columns(["key"]), "columns are missing: key"),
    "lists": (other("vector", [[1.0]] * 3), "vector is list<.*>, not fixed_size_list"),
    "float64": (other("vector", [[1.0]] * 3, pa.list_(pa.float64(), 1)), "double"),
    "strings for vectors": (other("vector", ["x"] * 3), "vector is string"),
    "strings for scores": (as_scores(other("vector", ["x"] * 3)), "score is str"),
    "keys of 8 bytes": (other("key", [b"12345678"] * 3, pa.binary(8)), r"\[8\], not fixed_size_b"),
    "keys of any size": (other("key", [b"1"] * 3), "key is binary, not fixed_size_binary"),
    "texts": (other("text", [1, 2, 3]), "text is int64, not string"),
    "prompts": (other("prompt", [{"a": 1}] * 3), "prompt is struct<a: int64>, not string"),
    "tokens": (other("n_tokens", ["x"] * 3), "n_tokens is string, not int32"),
    "times": (other("created_at", ["x"] * 3), "created_at is string, not timestamp"),
}  # fmt: skip


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, str]:
    """A cache with the table, and a file."""
    table, why = REFUSED[request.param]
    place = Database(tmp_path / "cache", writable=True).space(IDENTITY, "m", "v").location
    lance.write_dataset(table, str(place))
    pq.write_table(table, tmp_path / "x.parquet")
    return tmp_path / "cache", tmp_path / "x.parquet", why


def test_every_way_to_open_it_refuses_it(refused: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, _, why = refused
    ways: list[Callable[[], Any]] = [
        lambda: len(Cache(cache).space()),
        lambda: Cache(cache).space().describe(),
        lambda: Cache(cache).space().get("a", "p: "),
        lambda: Cache(cache).space().export(tmp_path / "y.npy"),
        lambda: Cache(cache).space().compact(),
        lambda: encode(cache, "raise"),
    ]
    for way in ways:
        with pytest.raises(CacheFormatError, match=why):
            way()
    report = check_space(Database(cache, writable=False).space(IDENTITY, "m", "v"))
    assert not report.ok and report.problems
    merged = Cache(tmp_path / "target").merge(cache)
    assert not merged.spaces and len(merged.failed) == 1


def test_a_file_is_refused(refused: tuple[Path, Path, str], tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match=r"x\.parquet (has no column|says that)"):
        Cache(tmp_path / "target").import_file(refused[1])


def encode(cache: Path, on_miss: Any) -> Any:
    space = Database(cache, writable=True).space(IDENTITY, "m", "v")
    request = TextRequest(texts=["a", "new"], prompt="p: ", show_progress=False)
    return Pipeline(FakeEngine(), IDENTITY, space, on_miss=on_miss).encode(request)


def test_nulls_are_damaged_rows(tmp_path: Path) -> None:
    """Whole vectors, components, keys and checksums; of a file that says it was exported."""
    keys, sums = GOOD["key"].to_pylist(), GOOD["checksum"].to_pylist()
    vectors = GOOD["vector"].to_pylist()
    tables = [
        other("vector", [None, *vectors[1:]], SCHEMA.field("vector").type),
        other("vector", [[None] * 8, *vectors[1:]], SCHEMA.field("vector").type),
        other("key", [None, *keys[1:]], pa.binary(16)),
        other("checksum", [None, *sums[1:]], pa.uint64()),
    ]
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / "x.parquet")
        report = Cache(tmp_path / f"cache {number}").import_file(tmp_path / "x.parquet")
        assert (report.refused, report.added) == (1, 2)


def test_a_time_beyond_all_years_is_none(tmp_path: Path) -> None:
    far = pa.array([2**62] * 3).cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))
    table = other("created_at", far)
    lance.write_dataset(
        table, str(Database(tmp_path, writable=True).space(IDENTITY, "m", "v").location)
    )
    found = Cache(tmp_path).space().describe()
    assert found.rows == 3 and found.first_written is None


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    """Found by `make fuzz`; Lance makes no such table, and a file can have one."""
    table = GOOD.append_column("vector", GOOD["vector"])
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), tmp_path / "x.parquet")
    with pytest.raises(CacheFormatError, match="its column vector is there twice"):
        Cache(tmp_path / "cache").import_file(tmp_path / "x.parquet")
