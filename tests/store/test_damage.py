"""Break the files on purpose: a wrong vector never comes out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embcache import CacheError
from embcache.store import Space
from tests.spaces import folder, make_rows, read_all

Open = Callable[..., Space]


def data_files(space: Space) -> list[Path]:
    return sorted((folder(space) / "data").iterdir())


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1 << bit
    path.write_bytes(raw)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_never_give_a_wrong_vector(open_space: Open, seed: int) -> None:
    rng = random.Random(seed)
    writer, rows = open_space(), make_rows([f"text {i}" for i in range(400)], dim=64)
    writer.add(rows)
    (path,) = data_files(writer)
    raw = path.read_bytes()
    begin, size = raw.index(rows.values.tobytes()), rows.values.nbytes
    anywhere = seed % 2  # or in the vectors only, and then the rest can be read
    for _ in range(20):
        at = rng.randrange(len(raw)) if anywhere else begin + rng.randrange(size)
        flip_bit(path, at, rng.randrange(8))
    now = np.frombuffer(path.read_bytes()[begin : begin + size], np.uint32).reshape(400, 64)
    hit = (now != rows.values.view(np.uint32)).any(axis=1)
    try:
        snapshot = open_space().refresh()
        there = np.flatnonzero(snapshot.find(rows.keys) >= 0)
        values, failed = snapshot.read_all(snapshot.find(rows.keys[there]), rows.keys[there])
    except CacheError as error:
        assert anywhere and str(folder(writer)) in str(error)
        return
    good = there[~failed]
    assert (values[~failed] == rows.values[good]).all()
    assert hit.any() and not hit[good].any()
    assert anywhere or len(good) == 400 - hit.sum()


def test_a_flipped_bit_in_a_vector_is_seen(open_space: Open) -> None:
    writer, rows = open_space(), make_rows([f"text {i}" for i in range(100)], dim=64)
    writer.add(rows)
    (path,) = data_files(writer)
    at = path.read_bytes().index(rows.values[17].tobytes())
    flip_bit(path, at + 40, 3)
    vectors, failed = read_all(open_space(), rows)
    assert np.flatnonzero(failed).tolist() == [17]
    assert (np.delete(vectors, 17, 0) == np.delete(rows.values, 17, 0)).all()


def test_swapped_vectors_are_seen(open_space: Open) -> None:
    """Checksums cover the key: two valid rows under each other's keys both fail."""
    writer, rows = open_space(), make_rows(["a", "b", "c"], dim=16)
    writer.add(rows)
    table = lancedb.connect(str(folder(writer).parent)).open_table(writer.name)
    data = table.to_arrow()
    order = pa.array([1, 0, 2])
    swapped = data.set_column(1, data.schema.field(1), data["vector"].take(order))
    swapped = swapped.set_column(2, data.schema.field(2), data["checksum"].take(order))
    table.delete("true")
    table.add(swapped)
    assert read_all(open_space(), rows)[1].tolist() == [True, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_from_elsewhere_is_not_handed_out(open_space: Open, value: float) -> None:
    rows = make_rows(["a", "b"])
    space = open_space()
    space.add(make_rows(["c"]))
    rows.values[1, 3] = value
    dataset = lance.dataset(str(folder(space)))  # LanceDB refuses NaN, other tools may not
    lance.write_dataset(rows.to_arrow(dataset.schema, store_text=True), dataset, mode="append")
    assert read_all(space, rows)[1].tolist() == [False, True]


def test_huge_but_finite_vectors_are_fine(open_space: Open) -> None:
    rows = make_rows(["a", "b"])
    rows.values[:] = np.finfo(np.float32).max
    space = open_space()
    space.add(rows)
    assert not read_all(space, rows)[1].any()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_truncated_data_file_is_an_error(open_space: Open, keep: float) -> None:
    writer, rows = open_space(), make_rows([f"text {i}" for i in range(400)], dim=64)
    writer.add(rows)
    (path,) = data_files(writer)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(CacheError, match=r"failed: .*[Mm]ove the folder away"):
        read_all(open_space(), rows)


def test_damaged_manifest_is_an_error(open_space: Open) -> None:
    writer = open_space()
    writer.add(make_rows(["a"]))
    for manifest in (folder(writer) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    with pytest.raises(CacheError, match=f"Opening {folder(writer)} failed"):
        open_space().refresh()


def test_creation_that_was_killed_is_no_table(open_space: Open) -> None:
    space = open_space()
    (folder(space) / "_versions").mkdir(parents=True)
    (folder(space) / "data").mkdir()
    space.add(make_rows(["a"]))
    assert lance.dataset(str(folder(space))).count_rows() == 1
