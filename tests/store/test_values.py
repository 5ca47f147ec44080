"""All ways to read rows by position give the same rows; what one cannot read, the next one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embcache.errors import DamagedSpaceError
from embcache.store import Space, values
from embcache.store.pages import VectorPages
from embcache.store.rows import Rows
from embcache.store.verify import Values
from tests.spaces import folder, make_rows, read_all

DIM = 256
COUNT = 6000


@pytest.fixture
def space(open_space: Callable[..., Space]) -> Space:
    """Five fragments: large ones, and small ones of which nothing is read directly."""
    space = open_space(compact_automatically=False)
    rows = all_rows()
    for start, stop in ((0, 2500), (2500, 2600), (2600, 4900), (4900, 4950), (4950, 6000)):
        space.add(rows.take(np.arange(start, stop)))
    return space


def all_rows() -> Rows:
    return make_rows([f"text {number}" for number in range(COUNT)], DIM)


def direct_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows of each block that is read directly from now on."""
    counts: list[int] = []
    read = VectorPages.read

    def counting(self: VectorPages, block: Any) -> Values:
        found = read(self, block)
        counts.append(len(found))
        return found

    monkeypatch.setattr(VectorPages, "read", counting)
    return counts


@pytest.mark.parametrize("share", [1.0, 0.6, 0.45, 0.05, 0.001])
def test_any_share_of_the_rows(space: Space, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = direct_blocks(monkeypatch)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(np.flatnonzero(rng.random(COUNT) < share))
    rows = all_rows().take(chosen)
    found, damaged = read_all(space, rows)
    assert not damaged.any()
    assert np.array_equal(found, rows.values)
    # A fragment pays from 1,024 wanted rows of 1 KiB on.
    expected = {1.0: 5850, 0.6: None, 0.45: None, 0.05: 0, 0.001: 0}[share]
    if expected is None:
        assert 1024 <= sum(counts) < len(chosen)
    else:
        assert sum(counts) == expected


def test_rows_that_fail_are_read_again_by_lance(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = VectorPages.read

    def shifted(self: VectorPages, block: Any) -> Values:  # as if the layout were another one
        return np.roll(read(self, block), 1, axis=1)

    monkeypatch.setattr(VectorPages, "read", shifted)
    found, damaged = read_all(space, all_rows())
    assert not damaged.any()
    assert np.array_equal(found, all_rows().values)


def test_a_read_that_fails_is_left_to_lance(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = VectorPages.read, iter(range(100))

    def failing(self: VectorPages, block: Any) -> Values:
        if next(calls) % 3 == 1:
            raise OSError("a bad sector")
        return read(self, block)

    monkeypatch.setattr(VectorPages, "read", failing)
    found, damaged = read_all(space, all_rows())
    assert not damaged.any()
    assert np.array_equal(found, all_rows().values)
    assert next(calls) > 3


def test_a_flipped_bit_is_damage(space: Space) -> None:
    rows = all_rows()
    wanted = rows.values[3000].tobytes()
    (file,) = [f for f in (folder(space) / "data").iterdir() if wanted in f.read_bytes()]
    raw = bytearray(file.read_bytes())
    raw[raw.index(wanted) + 77] ^= 16
    file.write_bytes(raw)
    found, damaged = read_all(space, rows)
    assert np.flatnonzero(damaged).tolist() == [3000]
    assert np.array_equal(np.delete(found, 3000, axis=0), np.delete(rows.values, 3000, axis=0))


def test_a_file_that_is_gone_is_lances_error(space: Space) -> None:
    snapshot = space.refresh()
    rows = all_rows()
    positions = snapshot.find(rows.keys)
    for file in (folder(space) / "data").iterdir():
        file.unlink()
    with pytest.raises(DamagedSpaceError, match=r"Reading vectors from .*Not found"):
        snapshot.read_all(positions, rows.keys)


def test_rows_that_were_dropped(space: Space) -> None:
    rows = all_rows()
    space.drop(rows.keys[[10, 3000, 5999]])
    kept = np.delete(np.arange(COUNT), [10, 3000, 5999])
    found, damaged = read_all(space, rows.take(kept))
    assert not damaged.any()
    assert np.array_equal(found, rows.values[kept])


def test_a_row_that_is_asked_for_twice(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = direct_blocks(monkeypatch)
    twice = np.concatenate((np.arange(COUNT), np.arange(COUNT)))
    rows = all_rows().take(twice)
    found, damaged = read_all(space, rows)
    assert not damaged.any()
    assert np.array_equal(found, rows.values)
    assert not counts


def test_rows_of_another_key_are_damaged(space: Space) -> None:
    snapshot, rows = space.refresh(), all_rows()
    positions = snapshot.find(rows.keys)
    _, damaged = snapshot.read_all(positions, rows.keys[::-1].copy())
    assert damaged.all()


def test_scores_are_lances(monkeypatch: pytest.MonkeyPatch, scores: Space) -> None:
    monkeypatch.setattr(values, "_DIRECT_FROM_BYTES", 1)
    counts = direct_blocks(monkeypatch)
    snapshot = scores.refresh()
    keys = snapshot.keys()
    found, damaged = snapshot.read_all(snapshot.find(keys), keys)
    assert not damaged.any() and found.shape == (2, 1) and not counts
