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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embcache.errors import CacheFormatError, EmbcacheError, printable
from embcache.identity import keys
from embcache.identity.identity import Identity
from embcache.store import SCORES, VECTORS, Database, Rows, index_file, manifests
from embcache.store import pages as vector_pages
from embcache.store.index import KeyIndex, KeyParts
from embcache.store.schema import (
    SpaceMetadata,
    check_columns,
    read_metadata,
    schema_layout,
    space_schema,
    value_dim,
)
from embcache.tools.import_ import import_file
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


def _file(write: Callable[[pa.Table, io.BytesIO], Any], table: pa.Table) -> bytes:
    made = io.BytesIO()
    write(table, made)
    return made.getvalue()


def _ipc(table: pa.Table, made: io.BytesIO) -> None:
    with pa.ipc.new_file(made, table.schema) as file:
        file.write_table(table)


_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES: dict[str, tuple[str, bytes]] = {
    "txt": ("txt", b"a text\r\n\xef\xbb\xbf\xc3\xa9\n\n" * 3),
    "csv": ("csv", b"text,title,n\n" + b'"text, quoted ""twice""",t,1\nx,y,2\n' * 3),
    "tsv": ("tsv", b"text\ttitle\tn\n" + b"a text\tt\t1\n" * 4),
    "jsonl": ("jsonl", _LINES),
    "array": ("jsonl", json.dumps(ROWS, indent=1).encode()),
    "parquet": ("parquet", _file(pq.write_table, pa.Table.from_pylist(ROWS))),
    "arrow": ("arrow", _file(_ipc, pa.Table.from_pylist(ROWS))),
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


_VECTORS = np.arange(24, dtype=np.float32).reshape(6, 4)
_TEXTS = [str(row["text"]) for row in ROWS]
_KEYS = keys.text_keys(IDENTITY.to_bytes(), "p: ", _TEXTS)
_EXPORTED = Rows(_KEYS, _VECTORS, {"text": _TEXTS, "prompt": "p: "}).to_arrow(
    _schemas[0], store_text=True
)
WRITERS = {"parquet": pq.write_table, "arrow": _ipc}


@st.composite
def other_columns(draw: st.DrawFn) -> pa.Table:
    """What was exported, with columns missing, of other types, or twice."""
    names = st.sampled_from(_EXPORTED.column_names)
    changes = draw(st.lists(st.tuples(names, types), max_size=2))
    left = draw(st.sets(names, max_size=1))
    if draw(st.booleans()):
        left |= {name for name, _ in changes}
    fields = [field for field in _EXPORTED.schema if field.name not in left]
    fields += [pa.field(name, kind) for name, kind in changes]
    columns = [_as_type(_EXPORTED.column(field.name), field.type) for field in fields]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, METADATA.to_arrow()))


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowException:
        return pa.chunked_array([pa.nulls(len(column), kind)])


@pytest.mark.parametrize("ending", WRITERS)
@quick
@given(st.data())
def test_import(ending: str, data: st.DataObject) -> None:
    raw = data.draw(damaged(_file(WRITERS[ending], _EXPORTED)) | st.binary(max_size=60))
    _import(ending, raw)


@pytest.mark.parametrize("ending", WRITERS)
@quick
@given(other_columns())
def test_import_of_other_columns(ending: str, table: pa.Table) -> None:
    try:
        raw = _file(WRITERS[ending], table)
    except pa.ArrowException:  # Parquet has not all of Arrow's types
        return
    _import(ending, raw)


def _import(ending: str, raw: bytes) -> None:
    """What is imported is right; the rest is counted, or an error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"x.{ending}")
        file.write_bytes(raw)
        try:
            report = import_file(file, Path(folder, "cache"))
        except EmbcacheError as error:
            assert "x." in str(error) and printable(str(error)) == str(error)
            return
        assert report.rows == report.added + report.present + report.refused
        if not report.added:
            return
        space = Database(Path(folder, "cache"), writable=False).space(IDENTITY, "m", "v")
        snapshot = space.refresh()
        positions = snapshot.find(_KEYS)
        there = np.flatnonzero(positions >= 0)
        values, bad = snapshot.read_all(positions[there], _KEYS[there])
        assert not bad.any() and (values == _VECTORS[there]).all()


_numbers = st.integers(0, 2**64 - 1)
_file_names = st.one_of(
    st.builds("{:020}.manifest".format, _numbers),
    st.builds("{}.manifest".format, st.integers(0, 10**200)),
    st.builds("{}-x.txn".format, st.integers(-9, 10**200)),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=50
    ),
)


@quick
@given(
    st.sets(_file_names, max_size=4),
    damaged(b'{"version":12}') | json_values.map(lambda value: json.dumps(value).encode()),
)
def test_names_of_versions_and_the_hint(names: set[str], hint: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder)
        for place in (manifests.FOLDER, "_transactions"):
            (table / place).mkdir()
            for name in names - {".", ".."}:
                (table / place / name).touch()
                os.utime(table / place / name, (0, 0))
        manifests.hint(table).write_bytes(hint)
        found = manifests.versions(table)
        assert isinstance(manifests.newest_committed(table), int)
    assert [*found] == sorted(found, reverse=True)


@quick
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 6), min_size=6, max_size=6),
    st.data(),
)
def test_an_index_on_disk(positions: list[int], data: st.DataObject) -> None:
    """Damaged it is passed over; whatever it says, no row is before the first."""
    made_up = KeyIndex(_KEYS[:, 0].copy(), _KEYS[:, 1].copy(), np.array(positions, np.int64))
    with tempfile.TemporaryDirectory() as folder:
        index_file.save(Path(folder), [("a", 6)], KeyParts((made_up,)))
        path = Path(folder, index_file.FILE)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        found = index_file.load(Path(folder), 6)
    if found is not None:
        assert (found[1].parts[0].positions >= 0).all() and min(positions) >= 0


@quick
@given(
    st.integers(0, 40),
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 700) | _numbers, st.integers(0, 700) | _numbers), max_size=2
        ),
        max_size=3,
    ),
)
def test_pages_of_a_data_file(rows: int, pages: list[list[tuple[int, int]]]) -> None:
    """Whatever a file says of itself, what is read is in it, and as long as the vectors are."""
    buffers = [[SimpleNamespace(position=at, size=size) for at, size in page] for page in pages]
    column = SimpleNamespace(pages=[SimpleNamespace(buffers=page) for page in buffers])
    about = SimpleNamespace(schema=pa.schema([("vector", pa.null())]), columns=[column])
    fragment: Any = SimpleNamespace(
        metadata=SimpleNamespace(
            files=[SimpleNamespace(path="x")], deletion_file=None, num_rows=rows
        )
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        reader = SimpleNamespace(metadata=lambda: about)
        patch.setattr(vector_pages, "LanceFileReader", lambda path: reader)
        Path(folder, "data").mkdir()
        Path(folder, "data", "x").write_bytes(bytes(640))
        found = vector_pages.locate(fragment, Path(folder), 4)
        if found is not None and rows:
            for block in found.blocks(np.arange(rows)):
                assert found.read(block).shape == (block.span.stop - block.span.start, 4)


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
