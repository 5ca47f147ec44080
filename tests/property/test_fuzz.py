"""What comes from someone else, damaged at random: an answer, or one of embcache's own errors.

Here for seconds; `make fuzz` runs the same functions for minutes (benchmarks/fuzz.py).
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache.errors import CacheFormatError, EmbcacheError, printable
from embcache.identity import keys
from embcache.identity.identity import Identity
from embcache.store import SCORES, VECTORS
from embcache.store.schema import (
    SpaceMetadata,
    check_columns,
    read_metadata,
    schema_layout,
    space_schema,
    value_dim,
)
from embcache.warm import Columns
from embcache.warm.sources import read_files

quick = settings(
    max_examples=int(os.environ.get("EMBCACHE_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[*HealthCheck],
    database=None,
)

IDENTITY = Identity("organization/name", "0" * 40, "float32", {"max_model_len": 512, "a": [{}]})
METADATA = SpaceMetadata(IDENTITY, "organization/name", "vllm 0.32", "0.1.0")
ROWS = [{"text": f"text {i} é", "title": "a title", "n": i} for i in range(6)]

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few pieces replaced, removed, repeated or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.binary(max_size=12), st.just(bytes(data[start:stop]) * 2)))
        data[start:stop] = piece
    return bytes(data)


field_names = st.sampled_from([field.name for field in dataclasses.fields(Identity)])
identity_texts = st.one_of(
    st.text(),
    damaged(IDENTITY.to_json().encode()).map(lambda raw: raw.decode("utf-8", "replace")),
    st.dictionaries(field_names | st.text(), json_values).map(json.dumps),
    st.dictionaries(field_names, json_values, min_size=1, max_size=2).map(
        lambda changes: json.dumps({**json.loads(IDENTITY.to_json()), **changes})
    ),
)


@quick
@given(identity_texts)
def test_identity_json(text: str) -> None:
    try:
        read = Identity.from_json(text)
    except CacheFormatError as error:
        assert len(str(error)) < 2000 and printable(str(error)) == str(error)
        return
    assert Identity.from_json(read.to_json()) == read
    assert "/" not in read.dtype and len(read.fingerprint()) == 10


names = st.sampled_from([*METADATA.to_arrow()])


@quick
@given(
    st.dictionaries(names, st.binary() | st.integers().map(lambda n: str(n).encode())),
    st.sets(names, max_size=1),
    damaged(IDENTITY.to_json().encode()),
)
def test_schema_metadata(changes: dict[bytes, bytes], left: set[bytes], identity: bytes) -> None:
    raw = {**METADATA.to_arrow(), b"embcache:identity": identity, **changes}
    schema = pa.schema([]).with_metadata({k: v for k, v in raw.items() if k not in left})
    try:
        read = read_metadata(schema, "the/table")
    except CacheFormatError as error:
        assert str(error).startswith("the/table ")
        return
    assert read.to_arrow()[b"embcache:model"] == raw[b"embcache:model"]


types = st.recursive(
    st.sampled_from(
        [
            *(pa.float16(), pa.float32(), pa.float64(), pa.uint64(), pa.int32(), pa.int64()),
            *(pa.string(), pa.large_string(), pa.binary(), pa.binary(16), pa.binary(8), pa.null()),
            *(pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.bool_(), pa.date32()),
        ]
    ),
    lambda inner: st.one_of(
        st.builds(pa.list_, inner, st.integers(0, 9)),
        st.builds(pa.list_, inner),
        st.builds(lambda kind: pa.dictionary(pa.int32(), pa.string()), inner),
        st.builds(lambda kind: pa.struct([("a", kind)]), inner),
    ),
    max_leaves=2,
)
_schemas = [space_schema(layout, 4, METADATA, store_text=True) for layout in (VECTORS, SCORES)]
column_names = st.sampled_from(sorted({name for schema in _schemas for name in schema.names}))


@quick
@given(
    st.booleans(),
    st.lists(st.tuples(column_names, types), max_size=3),
    st.sets(column_names, max_size=2),
)
def test_schema_columns(
    scores: bool, changes: list[tuple[str, pa.DataType]], left: set[str]
) -> None:
    good = space_schema(SCORES if scores else VECTORS, 4, METADATA, store_text=True)
    fields = [(field.name, field.type) for field in good if field.name not in left] + changes
    schema = pa.schema(fields, metadata=METADATA.to_arrow())
    try:
        check_columns(schema, METADATA, "the/table")
    except CacheFormatError as error:
        assert str(error).startswith("the/table ")
        return
    layout = schema_layout(schema)
    assert {"key", "checksum", layout.value} <= set(schema.names)
    expected = space_schema(layout, value_dim(schema), METADATA, store_text=True)
    assert all(f.type == expected.field(f.name).type for f in schema if f.name in expected.names)


def _file(write: Callable[[pa.Table, io.BytesIO], Any]) -> bytes:
    made = io.BytesIO()
    write(pa.Table.from_pylist(ROWS), made)
    return made.getvalue()


def _ipc(table: pa.Table, made: io.BytesIO) -> None:
    with pa.ipc.new_file(made, table.schema) as file:
        file.write_table(table)


_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES: dict[str, tuple[str, bytes]] = {
    "csv": ("csv", b"text,title,n\n" + b'"text, quoted ""twice""",t,1\nx,y,2\n' * 3),
    "tsv": ("tsv", b"text\ttitle\tn\n" + b"a text\tt\t1\n" * 4),
    "jsonl": ("jsonl", _LINES),
    "array": ("jsonl", json.dumps(ROWS, indent=1).encode()),
    "parquet": ("parquet", _file(pq.write_table)),
    "arrow": ("arrow", _file(_ipc)),
    "gz": ("jsonl", gzip.compress(_LINES)),
    "bz2": ("csv", bz2.compress(b"text,n\na,1\n" * 9)),
    "xz": ("jsonl", lzma.compress(_LINES)),
    "zst": ("tsv", pa.compress(b"text\tn\na\t1\n" * 9, "zstd", asbytes=True)),
}


@pytest.mark.parametrize("name", FILES)
@quick
@given(st.data())
def test_readers_of_warm(name: str, data: st.DataObject) -> None:
    kind, whole = FILES[name]
    raw = data.draw(damaged(whole) | st.binary(max_size=60))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(raw)
        bad: list[Any] = []
        try:
            batches = list(read_files(kind, [str(path)], Columns(), bad.append))
        except EmbcacheError as error:
            assert "x" in str(error) and printable(str(error)) == str(error)
            return
    assert all(isinstance(text, str) for batch in batches for text in batch.texts)
    assert all(str(row) for row in bad)


class _Recorder:
    """In xxhash's place: keeps what is hashed, and makes some digest of it."""

    def __init__(self, raw: bytes = b"") -> None:
        self.raw = raw

    seen: list[bytes]

    def update(self, raw: bytes) -> None:
        self.raw += raw

    def copy(self) -> _Recorder:
        return _Recorder(self.raw)

    def digest(self) -> bytes:
        _Recorder.seen.append(self.raw)
        return bytes(16)


def _parts(raw: bytes) -> list[bytes]:
    """Take apart what was hashed: that this works is why no two inputs share their bytes."""
    parts = []
    while raw:
        (size,) = struct.unpack_from("<Q", raw)
        assert len(raw) >= 8 + size
        parts.append(raw[8 : 8 + size])
        raw = raw[8 + size :]
    return parts


@quick
@given(st.binary(), st.lists(texts, min_size=5, max_size=5))
def test_no_two_inputs_share_the_bytes_that_are_hashed(identity: bytes, some: list[str]) -> None:
    """Texts have three parts and pairs five, each whole: nothing of one can pass for the other."""
    one, two, three, four, _ = some
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Recorder, "seen", [], raising=False)
        patch.setattr("xxhash.xxh3_128", _Recorder)
        patch.setattr("xxhash.xxh3_128_digest", lambda raw: _Recorder(raw).digest())
        keys.text_keys(identity, one, [two, three])
        keys.pair_keys(identity, (one, two), [three], [four])
        hashed = [_parts(raw) for raw in _Recorder.seen]
    encoded = [text.encode() for text in some]
    assert hashed == [
        [identity, encoded[0], encoded[1]],
        [identity, encoded[0], encoded[2]],
        [identity, *encoded[:4]],
    ]


@quick
@given(st.binary(), texts, texts, texts, st.integers(0, 20))
def test_moving_a_border_moves_the_key(
    identity: bytes, prompt: str, text: str, more: str, at: int
) -> None:
    """Prompt and text, query and document: the same characters, cut elsewhere, are another key."""
    whole = prompt + text + more
    first, second = whole[:at], whole[at:]
    if (first, second) != (prompt, text + more):
        before = keys.text_keys(identity, prompt, [text + more]).tolist()
        assert keys.text_keys(identity, first, [second]).tolist() != before
        before = keys.pair_keys(identity, ("", ""), [prompt], [text + more]).tolist()
        assert keys.pair_keys(identity, ("", ""), [first], [second]).tolist() != before
