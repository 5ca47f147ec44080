"""The keys of a table, turn by turn, and the rows that are read for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embcache import DamagedSpaceError
from embcache.store import RowFilter
from embcache.tools.missing_rows import fitting, read_keys, read_sound
from tests.spaces import add_blindly, make_rows
from tests.store.test_damage import data_files
from tests.tools.test_merge import space_in


def test_each_key_and_its_duplicates_by_turns(tmp_path: Path) -> None:
    space = space_in(tmp_path)
    space.add(make_rows(["a", "b", "c"]))
    for texts in (["c", "a"], ["a"]):
        add_blindly(space, make_rows(texts))
    found = read_keys(space.open())
    assert (found.rows, found.duplicates, found.unreadable, len(found.distinct)) == (6, 3, 0, 3)
    turns = [found.turn(np.arange(3), number)[1].tolist() for number in range(4)]
    assert turns == [[0, 1, 2], [3, 4], [5], []]
    owners, positions = found.turn(np.arange(3), 1)
    keys = make_rows(["c", "a"]).keys
    assert (found.distinct[owners] == keys).all() and positions.tolist() == [3, 4]


def test_files_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Positions stay those of the table."""
    space = space_in(tmp_path, compact_automatically=False)
    parts = [make_rows([f"{part} {i}" for i in range(10)], seed=part) for part in range(3)]
    for rows in parts:
        space.add(rows)
    needle = parts[1].values.tobytes()[:32]
    (path,) = [path for path in data_files(space) if needle in path.read_bytes()]
    path.write_bytes(path.read_bytes()[:200])
    reader = space.open()
    found = read_keys(reader)
    assert (found.rows, found.unreadable) == (30, 10)
    assert sorted(found.positions.tolist()) == [*range(10), *range(20, 30)]
    assert f"data/{path.name}" in caplog.text
    read = list(read_sound(reader, np.arange(30)))
    assert [at.tolist() for at, _ in read] == [[*range(10)], [*range(20, 30)]]
    fit = fitting(reader, np.arange(30), RowFilter(prompt="p: "))
    assert (int(fit.fits.sum()), fit.unknown) == (20, 10)


def test_no_filter_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_in(tmp_path)
    space.add(make_rows(["a", "b"]))
    reader = space.open()
    monkeypatch.delattr(type(reader), "take")
    fit = fitting(reader, np.arange(2), RowFilter())
    assert fit.fits.all() and fit.unknown == 0
    assert list(read_sound(reader, np.empty(0, np.int64))) == []


def test_fewer_rows_than_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_in(tmp_path)
    space.add(make_rows(["a", "b"]))
    reader = space.open()
    take = type(reader).take
    monkeypatch.setattr(type(reader), "take", lambda self, at, names: take(self, at[:1], names))
    with pytest.raises(DamagedSpaceError, match=r"Lance returned 1 of 2"):
        reader.read_batch(np.arange(2))
    assert list(read_sound(reader, np.arange(2))) == []
