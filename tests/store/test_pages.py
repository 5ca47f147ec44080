from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lance.file import LanceFileReader

from embcache.store import pages
from embcache.store.pages import VectorPages, locate

DIM = 64


def table_of(path: Path, vectors: np.ndarray, column: str = "vector", **options: Any) -> Any:
    """A Lance table with a column of vectors between two others; its first fragment."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
    schema = pa.schema(
        [
            pa.field("key", pa.binary(16), nullable=False),
            pa.field(column, kind, nullable=False),
            pa.field("text", pa.string()),
        ]
    )
    keys = pa.array([bytes([i % 256] * 16) for i in range(len(vectors))], pa.binary(16))
    texts = pa.array([f"text {i}" for i in range(len(vectors))])
    rows = pa.table([keys, values, texts], schema=schema)
    batches = pa.RecordBatchReader.from_batches(schema, rows.to_batches(1000))
    return lance.write_dataset(batches, path, **options).get_fragments()[0]


def vectors_of(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def read(found: VectorPages, rows: np.ndarray) -> np.ndarray:
    """The rows, from all blocks; each block has rows of its own, in order."""
    values = np.full((len(rows), found.dim), np.nan, np.float32)
    seen = np.zeros(len(rows), int)
    for block in found.blocks(rows):
        values[block.span] = found.read(block)
        seen[block.span] += 1
    assert (seen == 1).all()
    return values


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_every_row_is_where_it_is_said_to_be(tmp_path: Path, version: str, dim: int) -> None:
    vectors, table = vectors_of(3000, dim), tmp_path / "t"
    found = locate(table_of(table, vectors, data_storage_version=version), table, dim)
    assert found is not None
    assert np.array_equal(read(found, np.arange(3000)), vectors)


def test_the_format_that_spaces_have_is_known(tmp_path: Path) -> None:
    # Else everything still works, slower, and nobody would hear of it.
    for dim in (64, 384, 1024, 4096):
        table = tmp_path / str(dim)
        assert locate(table_of(table, vectors_of(100, dim)), table, dim) is not None


def test_several_pages(tmp_path: Path) -> None:
    vectors = vectors_of(9000, 512)  # 18 MB, and a page has some 8
    found = locate(table_of(tmp_path / "t", vectors), tmp_path / "t", 512)
    assert found is not None and len(found.offsets) > 1
    assert np.array_equal(read(found, np.arange(9000)), vectors)
    some = np.flatnonzero(np.random.default_rng(0).random(9000) < 0.1)
    assert np.array_equal(read(found, some), vectors[some])


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    dim=st.sampled_from([1, 3, 700]),
    block=st.integers(1, 20),
    gap=st.integers(0, 10),
    data=st.data(),
)
def test_any_rows_of_any_pages(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    dim: int,
    block: int,
    gap: int,
    data: st.DataObject,
) -> None:
    count = sum(sizes)
    chosen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    rows = np.flatnonzero(chosen)
    vectors = vectors_of(count, dim)
    path = tmp_path_factory.getbasetemp() / "pages"
    offsets, written = [], b""
    starts = np.concatenate(([0], np.cumsum(sizes)))
    for start, stop in pairwise(starts):
        written += b"x" * data.draw(st.integers(0, 70))
        offsets.append(len(written))
        written += vectors[start:stop].tobytes()
    path.write_bytes(written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "BLOCK_BYTES", block * 4 * dim)
        patch.setattr(pages, "_GAP_BYTES", gap * 4 * dim)
        found = VectorPages(path, dim, starts, np.array(offsets))
        assert np.array_equal(read(found, rows), vectors[rows])
        assert all(one.rows <= 2 * block + gap for one in found.blocks(rows))


def test_equal_vectors_which_lance_may_write_once(tmp_path: Path) -> None:
    vectors = np.zeros((2000, DIM), np.float32)
    found = locate(table_of(tmp_path / "t", vectors), tmp_path / "t", DIM)
    assert found is None or np.array_equal(read(found, np.arange(2000)), vectors)


def test_rows_that_are_far_apart_are_not_read_over(tmp_path: Path) -> None:
    found = VectorPages(tmp_path, 1024, np.array([0, 1000]), np.array([0]))
    (block,) = found.blocks(np.array([0, 1, 500, 501, 999]))
    assert (block.rows, [size for _, size in block.runs]) == (5, [8192, 8192, 4096])


def test_neighbours_are_read_by_one_call(tmp_path: Path) -> None:
    found = VectorPages(tmp_path, 256, np.array([0, 1000]), np.array([64]))
    (block,) = found.blocks(np.array([10, 12, 14]))
    assert block.runs == [(64 + 10 * 1024, 5 * 1024)]
    assert block.picked is not None and block.picked.tolist() == [0, 2, 4]


def no_vectors(path: Path) -> Any:
    return table_of(path, vectors_of(500), column="other")


def short_vectors(path: Path) -> Any:
    return table_of(path, vectors_of(500, 4))


def deleted_rows(path: Path) -> Any:
    table_of(path, vectors_of(500))
    dataset = lance.dataset(path)
    dataset.delete("text = 'text 3'")
    return dataset.get_fragments()[0]


def with_nulls(path: Path) -> Any:
    kind = pa.list_(pa.float32(), DIM)
    values = pa.array([[0.0] * DIM if i % 3 else None for i in range(500)], kind)
    return lance.write_dataset(pa.table({"vector": values}), path).get_fragments()[0]


def two_files(path: Path) -> Any:
    table_of(path, vectors_of(500))
    dataset = lance.dataset(path)
    dataset.add_columns({"another": "1"})
    return dataset.get_fragments()[0]


def no_file(path: Path) -> Any:
    fragment = table_of(path, vectors_of(500))
    (file,) = (path / "data").iterdir()
    file.unlink()
    return fragment


def cut_file(path: Path) -> Any:
    fragment = table_of(path, vectors_of(500))
    (file,) = (path / "data").iterdir()
    os.truncate(file, 1000)
    return fragment


@pytest.mark.parametrize(
    "make",
    [no_vectors, short_vectors, deleted_rows, with_nulls, two_files, no_file, cut_file],
)
def test_what_is_not_known_is_left_to_lance(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    fragment = make(tmp_path / "t")
    dim = 4 if make is short_vectors else DIM
    assert locate(fragment, tmp_path / "t", dim) is None


def test_another_dimension_is_left_to_lance(tmp_path: Path) -> None:
    fragment = table_of(tmp_path / "t", vectors_of(500))
    assert locate(fragment, tmp_path / "t", DIM // 2) is None


def test_an_error_that_is_not_lances_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = table_of(tmp_path / "t", vectors_of(10))

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt("by the user")

    class Reader(LanceFileReader):  # type: ignore[misc]
        metadata = interrupt

    monkeypatch.setattr(pages, "LanceFileReader", Reader)
    with pytest.raises(KeyboardInterrupt, match="by the user"):
        locate(fragment, tmp_path / "t", DIM)


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    found = locate(table_of(tmp_path / "t", vectors_of(500)), tmp_path / "t", DIM)
    assert found is not None
    (block,) = found.blocks(np.arange(500))
    os.truncate(found.path, 5000)
    with pytest.raises(OSError, match="bytes early"):
        found.read(block)
    found.path.unlink()
    with pytest.raises(FileNotFoundError, match="No such file"):
        found.read(block)


def test_what_a_file_says_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places beyond its end, before its beginning, and numbers that NumPy does not have."""
    fragment = table_of(tmp_path / "t", vectors_of(100))
    [file] = (tmp_path / "t" / "data").iterdir()
    size, whole = file.stat().st_size, 100 * 4 * DIM
    for pages_said in (
        [(size - whole + 1, whole)],
        [(2**64 - 64, whole)],
        [(0, 2**63)],
        [(0, 2**62)] * 4 + [(0, whole)],
        [(0, whole - 4), (0, 4)],
        [],
    ):
        buffers = [SimpleNamespace(position=at, size=size) for at, size in pages_said]
        column = SimpleNamespace(pages=[SimpleNamespace(buffers=[one]) for one in buffers])
        said = SimpleNamespace(schema=pa.schema([("vector", pa.null())]), columns=[column])
        reader = SimpleNamespace(metadata=lambda said=said: said)
        monkeypatch.setattr(pages, "LanceFileReader", lambda path, reader=reader: reader)
        assert locate(fragment, tmp_path / "t", DIM) is None


def test_a_manifest_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    fragment = table_of(tmp_path / "t", vectors_of(100))
    [file] = (tmp_path / "t" / "data").iterdir()
    file.rename(tmp_path / "outside.lance")
    about = fragment.metadata
    names = ("../../outside.lance", str(tmp_path / "outside.lance"))
    for name in names:
        said = SimpleNamespace(
            files=[SimpleNamespace(path=name)], deletion_file=None, num_rows=about.num_rows
        )
        assert locate(SimpleNamespace(metadata=said), tmp_path / "t", DIM) is None
    file.with_name("outside.lance").symlink_to(tmp_path / "outside.lance")
    said.files[0].path = names[0]  # the last part of it is a name like others
    assert locate(SimpleNamespace(metadata=said), tmp_path / "t", DIM) is not None
