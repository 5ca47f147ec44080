"""What every store must do, whatever it keeps rows in: one suite for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embcache import CacheError
from embcache.identity.keys import Keys
from embcache.store import Database, Overlay, Rows, Snapshot, Space, Store
from tests.spaces import IDENTITY, folder, make_rows
from tests.store.test_damage import data_files, flip_bit

Make = Callable[[], Store]


def on_disk(cache: Path) -> Space:
    return Database(cache, writable=True).space(IDENTITY, IDENTITY.model, "vllm 1.0")


def over_rows(cache: Path) -> Overlay:
    """An overlay over a space that holds other rows, which must not get in the way."""
    below = on_disk(cache)
    below.add(make_rows([f"below {i}" for i in range(20)], seed=99))
    return Overlay(below)


STORES: dict[str, Callable[[Path], Store]] = {
    "a space": on_disk,
    "memory": lambda cache: Overlay(),
    "an overlay over nothing yet": lambda cache: Overlay(on_disk(cache)),
    "an overlay over rows": over_rows,
}
IN_AN_OBJECT_STORE = "a space in an object store"


@pytest.fixture(params=[*STORES, IN_AN_OBJECT_STORE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param != IN_AN_OBJECT_STORE:
        return STORES[request.param](tmp_path / "cache")
    remote = request.getfixturevalue("remote")
    database = Database(remote.url, remote.options, writable=True)
    return database.space(IDENTITY, IDENTITY.model, "vllm 1.0")


def read(snapshot: Snapshot, keys: Keys) -> np.ndarray:
    """`(n, dim) float32`, row i is that of key i; none may be missing or damaged."""
    positions = snapshot.find(keys)
    assert (positions >= 0).all()
    values = np.full((len(keys), snapshot.dim or 0), np.nan, np.float32)
    for part in snapshot.read(positions, keys):
        assert not part.damaged.any()
        values[part.at] = part.values
    return values


def test_what_was_added_is_found_and_read_bit_for_bit(store: Store) -> None:
    first, second = (make_rows([f"{p} {i}" for i in range(300)], seed=p) for p in (1, 2))
    before = len(store.refresh())
    store.add(first)
    snapshot = store.add(second)
    assert len(snapshot) == before + 600 and snapshot.dim == 8
    order = np.random.default_rng(0).permutation(600)
    keys = np.concatenate((first.keys, second.keys))[order]
    values = np.concatenate((first.values, second.values))[order]
    assert read(snapshot, keys).tobytes() == values.tobytes()
    assert read(snapshot, keys[:1]).tobytes() == values[:1].tobytes()


def test_what_is_not_there_is_a_miss(store: Store) -> None:
    wanted = make_rows(["a", "b"])
    assert store.refresh().find(wanted.keys).tolist() == [-1, -1]
    store.add(make_rows(["b"]))
    assert (store.refresh().find(wanted.keys) >= 0).tolist() == [False, True]
    assert store.refresh().find(wanted.keys[:0]).tolist() == []
    assert list(store.refresh().read(np.empty(0, np.int64), wanted.keys[:0])) == []


def test_the_first_value_of_a_key_counts(store: Store) -> None:
    first, second = make_rows(["a", "b"], seed=1), make_rows(["b", "c"], seed=2)
    store.add(first)
    snapshot = store.add(second)
    assert (read(snapshot, first.keys) == first.values).all()
    assert (read(snapshot, second.keys[1:]) == second.values[1:]).all()
    size = len(snapshot)
    assert len(store.add(second)) == size


def test_a_key_twice_in_one_chunk(store: Store) -> None:
    once = make_rows(["a", "b"])
    twice = Rows(once.keys[[0, 1, 0]], make_rows(["x", "y", "z"]).values, {"text": list("aba")})
    before = len(store.refresh())
    snapshot = store.add(twice)
    assert len(snapshot) == before + 2
    assert (read(snapshot, once.keys) == twice.values[:2]).all()


def test_a_snapshot_does_not_change(store: Store) -> None:
    rows = make_rows(["a"])
    old = store.add(rows)
    size = len(old)
    store.add(make_rows(["b"]))
    store.drop(rows.keys)
    assert len(old) == size and (read(old, rows.keys) == rows.values).all()
    assert (old.find(make_rows(["b"]).keys) == -1).all()


def test_refresh_is_the_same_object_where_nothing_happened(store: Store) -> None:
    assert store.refresh() is store.refresh()
    snapshot = store.add(make_rows(["a"]))
    assert store.refresh() is snapshot
    assert store.add(make_rows(["b"])) is not snapshot


def test_another_dimension_is_refused_and_nothing_is_lost(store: Store) -> None:
    rows = make_rows(["a"], dim=8)
    store.add(rows)
    with pytest.raises(CacheError, match="of 8 components, and those to be added have 9"):
        store.add(make_rows(["b"], dim=9))
    assert (read(store.refresh(), rows.keys) == rows.values).all()


def test_threads(store: Store) -> None:
    """Each finds what it added, whatever the others add meanwhile."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for part in range(5):
                rows = make_rows([f"{number % 3} {part} {i}" for i in range(40)], seed=part)
                assert (read(store.add(rows), rows.keys) == rows.values).all()
        except BaseException as error:
            errors.append(error)

    before = len(store.refresh())
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.refresh()) == before + 3 * 5 * 40


class TestOverlay:
    """What an overlay does beside that: it leaves the space below as it is."""

    def test_nothing_is_written(self, tmp_path: Path) -> None:
        store = Overlay(on_disk(tmp_path / "cache"))
        store.add(make_rows(["a"]))
        store.drop(make_rows(["a"]).keys)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_rows_of_the_space_are_found(self, tmp_path: Path) -> None:
        below, rows = on_disk(tmp_path), make_rows(["a", "b"])
        below.add(rows)
        store = Overlay(on_disk(tmp_path))
        above = make_rows(["c"], seed=5)
        snapshot = store.add(above)
        assert (read(snapshot, rows.keys[::-1]) == rows.values[::-1]).all()
        assert (read(snapshot, above.keys) == above.values).all()
        later = make_rows(["d"], seed=6)
        below.add(later)
        assert (read(store.refresh(), later.keys) == later.values).all()

    def test_damaged_rows_are_misses_and_can_be_added(self, tmp_path: Path) -> None:
        below, rows = on_disk(tmp_path), make_rows(["a", "b"], dim=32)
        below.add(rows)
        (path,) = data_files(below)
        flip_bit(path, path.read_bytes().index(rows.values[0].tobytes()) + 3)
        store = Overlay(on_disk(tmp_path))
        snapshot = store.refresh()
        (part,) = snapshot.read(snapshot.find(rows.keys), rows.keys)
        assert part.damaged.tolist() == [True, False]
        store.drop(rows.keys[:1])
        assert store.refresh().find(rows.keys)[0] == -1
        assert (read(store.add(rows), rows.keys) == rows.values).all()
        assert len(below.refresh()) == 2 and folder(below).exists()
