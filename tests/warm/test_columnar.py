"""Parquet and Arrow, with strings of every type."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embcache import ConfigError, InputError
from embcache.warm import Columns
from embcache.warm.sources import estimate_rows
from tests.warm.reading import places, read

TEXTS = [" a", "é", "", "x" * 40]
KINDS = ["parquet", "arrow", "arrow stream"]
AS_IS = Columns(role="other")
kinds = pytest.mark.parametrize("kind", KINDS)


def write(folder: Path, kind: str, table: pa.Table) -> Path:
    path = folder / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with new(path, table.schema) as file:
            file.write_table(table)
    return path


def as_kind(kind: str) -> str:
    return kind.split(maxsplit=1)[0]


@kinds
@pytest.mark.parametrize(
    "type_",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.binary_view(), pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)  # fmt: skip
def test_every_type_of_string(kind: str, type_: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(TEXTS)
    column = column.dictionary_encode().cast(type_) if "dict" in str(type_) else column.cast(type_)
    path = write(tmp_path, kind, pa.table({"text": column, "title": column}))
    assert read(as_kind(kind), path, columns=AS_IS) == TEXTS
    titled = read(as_kind(kind), path, columns=Columns(title="title"))
    assert titled == ["a  a", "é é", "", f"{'x' * 40} {'x' * 40}"]


def test_run_ends_and_fixed_sizes(tmp_path: Path) -> None:
    runs = pc.run_end_encode(pa.array(["a", "a", "b"]))
    fixed = pa.array([b"abc", "dé".encode(), b"\xff\xff\xff"], pa.binary(3))
    path = write(tmp_path, "arrow", pa.table({"text": runs, "fixed": fixed}))
    assert read("arrow", path) == ["a", "a", "b"]
    found, bad = places("arrow", path, Columns("fixed"))
    assert list(found.values()) == ["abc", "dé"]
    assert bad == ["row 2: column 'fixed' is no UTF-8 text (byte 0xff at 0)"]


@kinds
@pytest.mark.parametrize("type_", [pa.string(), pa.binary()], ids=str)
def test_bytes_that_are_no_utf_8_cost_one_row(
    kind: str, type_: pa.DataType, tmp_path: Path
) -> None:
    """Arrow writes and reads strings that are none, and only Python sees it."""
    data = pa.array([b"a", "café".encode("latin-1"), None, b"b"])
    column = pa.Array.from_buffers(type_, 4, data.buffers())
    path = write(tmp_path, kind, pa.table({"text": column}))
    found, bad = places(as_kind(kind), path)
    assert found == {"row 0": "a", "row 3": "b"}
    assert bad == [
        "row 1: column 'text' is no UTF-8 text (byte 0xe9 at 3)",
        "row 2: column 'text' is null, not a string",
    ]


@kinds
@pytest.mark.parametrize(
    ("values", "what"), [([1, 2], "int 1"), ([0.5, 1], "float 0.5"), ([["a"], []], "list"),
                         ([{"a": 1}, {}], "dict"), ([True, False], "bool True")],
)  # fmt: skip
def test_a_column_of_no_texts(kind: str, values: Any, what: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, pa.table({"text": values, "title": values, "t": ["a", "b"]}))
    found, bad = places(as_kind(kind), path)
    assert found == {} and len(bad) == 2
    assert bad[0].startswith(f"row 0: column 'text' is {what}")
    found, bad = places(as_kind(kind), path, Columns("t", "title"))
    assert found == {} and bad[0].startswith(f"row 0: column 'title' is {what}")


@kinds
@pytest.mark.parametrize("titles", [[None, float("nan")], pa.nulls(2), [None, ""]], ids=str)
def test_no_titles(kind: str, titles: Any, tmp_path: Path) -> None:
    """pandas writes a column without any as floats."""
    path = write(tmp_path, kind, pa.table({"text": ["a ", "b"], "title": titles}))
    assert read(as_kind(kind), path, columns=Columns(title="title")) == ["a", "b"]


@kinds
def test_nested_columns(kind: str, tmp_path: Path) -> None:
    rows = [
        {"doc": {"text": "a", "meta": {"title": "T"}}, "doc.own": "x"},
        {"doc": None, "doc.own": "y"},
        {"doc": {"text": None, "meta": None}, "doc.own": "z"},
        {"doc": {"text": "b", "meta": None}, "doc.own": "w"},
    ]
    path = write(tmp_path, kind, pa.Table.from_pylist(rows))
    found, bad = places(as_kind(kind), path, Columns("doc.text", "doc.meta.title"))
    assert found == {"row 0": "T a", "row 3": "b"} and len(bad) == 2
    assert read(as_kind(kind), path, columns=Columns("doc.own")) == ["x", "y", "z", "w"]
    with pytest.raises(ConfigError, match=r"has no column 'doc\.body', only 'doc', 'doc\.own'"):
        read(as_kind(kind), path, columns=Columns("doc.body"))


@kinds
def test_a_column_whose_name_has_a_dot_wins(kind: str, tmp_path: Path) -> None:
    table = pa.table({"doc": [{"text": "nested"}], "doc.text": ["own"]})
    assert read(as_kind(kind), write(tmp_path, kind, table), columns=Columns("doc.text")) == ["own"]


@kinds
def test_a_column_that_is_there_twice(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind, pa.table([["a"], ["b"]], names=["text", "text"]))
    with pytest.raises(ConfigError, match="has 2 columns named 'text'"):
        read(as_kind(kind), path)


@kinds
def test_rows_are_counted_over_batches(kind: str, tmp_path: Path) -> None:
    texts = [None if i == 20_000 else str(i) for i in range(30_000)]
    found, bad = places(as_kind(kind), write(tmp_path, kind, pa.table({"text": texts})))
    assert len(found) == 29_999 and all(place == f"row {text}" for place, text in found.items())
    assert bad == ["row 20000: column 'text' is null, not a string"]


@kinds
@pytest.mark.parametrize("part", [0, 0.2, 0.9])
def test_a_damaged_file(kind: str, part: float, tmp_path: Path) -> None:
    path = write(tmp_path, kind, pa.table({"text": [os.urandom(9).hex() for _ in range(5000)]}))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=rf"x\.{kind} cannot be read as {as_kind(kind)}"):
        read(as_kind(kind), path)
    if kind == "parquet":
        with pytest.raises(InputError, match=r"x\.parquet cannot be read as parquet"):
            estimate_rows("parquet", [path])


def test_a_flipped_bit_of_a_parquet_file_with_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"text": [f"{i:040}" for i in range(2000)]})
    pq.write_table(table, path, write_page_checksum=True, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="CRC checksum verification failed"):
        read("parquet", path)


@kinds
def test_a_file_of_another_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no such thing" * 50)
    with pytest.raises(InputError, match=f"x cannot be read as {as_kind(kind)}"):
        read(as_kind(kind), path)


@pytest.mark.parametrize("offsets", [(0, 2**30, 4, 6), (0, 2, 2**31 - 1, 6), (0, 4, 2, 6)], ids=str)
def test_offsets_that_point_elsewhere(offsets: tuple[int, ...], tmp_path: Path) -> None:
    """Found by `make fuzz`: Arrow reads beyond the end of its memory, and the process is gone."""
    path = tmp_path / "x.arrow"
    table = pa.table({"text": ["aa", "bb", "cc"]})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    raw, good = path.read_bytes(), struct.pack("<4i", 0, 2, 4, 6)
    assert raw.count(good) == 1
    path.write_bytes(raw.replace(good, struct.pack("<4i", *offsets)))
    with pytest.raises(InputError, match=r"x\.arrow cannot be read as arrow: ArrowInvalid"):
        read("arrow", path)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "string_view"])
def test_what_is_no_utf8_costs_its_row_alone_whatever_type_holds_it(
    kind: str, tmp_path: Path
) -> None:
    raw = pa.array([b"good", b"\xff\xfe"])
    column = {
        "string": lambda: raw.view(pa.string()),
        "large_string": lambda: raw.cast(pa.large_binary()).view(pa.large_string()),
        "dictionary": lambda: pa.DictionaryArray.from_arrays([0, 1], raw.view(pa.string())),
        "string_view": lambda: raw.cast(pa.binary_view()).view(pa.string_view()),
    }[kind]()
    bad: list[Any] = []
    path = write(tmp_path, "arrow", pa.table({"text": column}))
    assert read("arrow", path, report=bad.append) == ["good"]
    assert [row.place for row in bad] == [f"{path}, row 1"]
