"""Schema metadata from someone else: read, or refused in words that name the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import CacheFormatError
from embcache.cache import Cache
from embcache.store import VECTORS
from embcache.store.schema import SpaceMetadata, read_metadata, space_schema
from tests.spaces import IDENTITY, make_rows

METADATA = SpaceMetadata(IDENTITY, "model", "vllm 1.0", "0.1.0")
HOSTILE: dict[str, tuple[dict[bytes, bytes], str]] = {
    "format of bytes": ({b"embcache:format_version": b"\xff"}, r"format version '\\\\xff' but"),
    "format of other digits": ({b"embcache:format_version": "\u0661".encode()}, "format version"),
    "format of many digits": ({b"embcache:format_version": b"9" * 10**6}, "format version '9{30}"),
    "format 0": ({b"embcache:format_version": b"0"}, "format version '0' but"),
    "format -1": ({b"embcache:format_version": b"-1"}, "format version '-1' but"),
    "identity of bytes": ({b"embcache:identity": b"\xff"}, "unreadable schema metadata"),
    "deep identity": ({b"embcache:identity": b"[" * 10**5}, "is nested 100,000 levels deep"),
    "large identity": (
        {b"embcache:identity": b'{"a": "' + b"x" * 10**8},
        "The identity is 100,000,007 long",
    ),
    "identity of a newer embcache": (
        {b"embcache:identity": json.dumps({**json.loads(IDENTITY.to_json()), "new": 1}).encode()},
        r"does not know: \['new'\]\. A newer one wrote it: upgrade",
    ),
    "large model": ({b"embcache:model": b"m" * 10**6}, "embcache:model is 1,000,000 bytes long"),
    "model of bytes": ({b"embcache:model": b"\xff"}, "UnicodeDecodeError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_an_error_that_names_the_table(name: str) -> None:
    changes, why = HOSTILE[name]
    schema = space_schema(VECTORS, 4, METADATA, store_text=True)
    hostile = schema.with_metadata({**schema.metadata, **changes})
    with pytest.raises(CacheFormatError, match=f"the/table has {why}|the/table has .*{why}"):
        read_metadata(hostile, "the/table")


@pytest.mark.parametrize("missing", ["identity", "model", "version", "engine_version"])
def test_missing_metadata_is_an_error(missing: str) -> None:
    schema = space_schema(VECTORS, 4, METADATA, store_text=True)
    left = {k: v for k, v in schema.metadata.items() if k != f"embcache:{missing}".encode()}
    with pytest.raises(CacheFormatError, match=f"KeyError: b'embcache:{missing}'"):
        read_metadata(schema.with_metadata(left), "the/table")


def table_of(folder: Path, identity: dict[str, Any]) -> Path:
    """A table with rows, and with an identity that no embcache wrote."""
    rows = make_rows(["a", "b"])
    schema = space_schema(VECTORS, 8, METADATA, store_text=True)
    text = json.dumps(identity).encode()
    schema = schema.with_metadata({**schema.metadata, b"embcache:identity": text})
    lance.write_dataset(rows.to_arrow(schema, store_text=True), str(folder / "x.lance"))
    return folder


@pytest.mark.parametrize("dtype", ["../../evil", "/tmp/evil", "a/b", "..\\x"])
def test_merge_and_import_do_not_leave_the_cache(dtype: str, tmp_path: Path) -> None:
    """The dtype is part of the name that a new table gets."""
    identity = {**json.loads(IDENTITY.to_json()), "dtype": dtype}
    other = table_of(tmp_path / "other", identity)
    target = Cache(tmp_path / "deep" / "down" / "cache")
    report = target.merge(other)
    assert not report.spaces and "is not the name of one" in report.failed[0]
    table = lance.dataset(str(other / "x.lance")).to_table()
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(CacheFormatError, match="is not the name of one"):
        target.import_file(tmp_path / "x.parquet")
    assert not list(tmp_path.rglob("*evil*"))
    assert [path.name for path in (tmp_path / "deep" / "down").iterdir()] in ([], ["cache"])


def test_an_extension_type_of_pickles_is_plain_data(tmp_path: Path) -> None:
    """`arrow.py_extension_type` once had its metadata unpickled when a file was opened."""
    evil = b"cposix\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR."
    schema = space_schema(VECTORS, 8, METADATA, store_text=True)
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    marked = schema.set(0, schema.field("key").with_metadata(marks))
    rows = make_rows(["a", "b"]).to_arrow(marked, store_text=True)
    pq.write_table(rows, tmp_path / "x.parquet")
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), marked) as file:
        file.write_table(rows)
    cache = Cache(tmp_path / "cache")
    assert cache.import_file(tmp_path / "x.parquet").added == 2
    assert cache.import_file(tmp_path / "x.arrow").present == 2
    assert not (tmp_path / "run").exists()
