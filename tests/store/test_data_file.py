from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from embcache.errors import CacheError, CacheFormatError
from embcache.store import Space
from embcache.store.data_file import DataFile
from tests.spaces import make_rows
from tests.store.test_damage import data_files, flip_bit

Open = Callable[..., Space]


def test_it_says_what_it_is_of(open_space: Open) -> None:
    space, rows = open_space(), make_rows([f"text {i}" for i in range(5000)])
    space.add(rows)
    file = DataFile(data_files(space)[0])
    assert file.metadata == space.metadata and (len(file), file.dim) == (5000, 8)
    parts = [*file.read()]
    assert (np.concatenate([part.values for part in parts]) == rows.values).all()
    assert not any(part.damaged.any() for part in parts)


def test_only_some_rows(open_space: Open) -> None:
    space, rows = open_space(), make_rows([f"text {i}" for i in range(100)])
    space.add(rows)
    live = np.arange(100) % 3 == 0
    (part,) = DataFile(data_files(space)[0]).read(live)
    assert (part.keys == rows.keys[live]).all()


def test_a_damaged_text_costs_no_vector(open_space: Open) -> None:
    space, rows = open_space(), make_rows([f"text {i} {'x' * i}" for i in range(100)])
    space.add(rows)
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"text 7 "), 7)
    (part,) = DataFile(path).read()
    assert (part.values == rows.values).all() and not part.damaged.any()
    texts = part.batch.column("text").to_pylist()
    assert texts[7] is None and texts[:7] + texts[8:] == (
        rows.columns["text"][:7] + rows.columns["text"][8:]  # type: ignore[index]
    )


def test_what_is_no_data_file_of_a_space(open_space: Open, tmp_path: Path) -> None:
    junk = tmp_path / "junk.lance"
    junk.write_bytes(b"junk")
    with pytest.raises(CacheError, match=r"Opening .*junk.lance failed"):
        DataFile(junk)
    lance.write_dataset(pa.table({"x": [1]}), str(tmp_path / "foreign"))
    (foreign,) = (tmp_path / "foreign" / "data").iterdir()
    with pytest.raises(CacheFormatError, match="not one that embcache wrote"):
        DataFile(foreign)
