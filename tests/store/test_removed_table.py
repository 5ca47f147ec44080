"""Two handles on one table, which one of them removes, and perhaps makes again.

What is acknowledged after that is in the table that is there now, whatever version the other handle
has in memory: also where both tables have as many versions, and where data files are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from embcache import CacheWriteError, ConfigError
from embcache.store import Database, Location, Space
from embcache.store import space as space_module
from embcache.store.database import _opened, open_listed
from tests.object_store import ObjectStore
from tests.spaces import IDENTITY, make_rows, read_all


class Two(NamedTuple):
    """Where both handles are on one table."""

    location: Location

    def open(self) -> Space:
        database = Database(self.location, writable=True)
        return database.space(IDENTITY, IDENTITY.model, "vllm 1.0", compact_automatically=False)


@pytest.fixture(params=["on disk", "in a store"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Two:
    if request.param == "on disk":
        return Two(Location.of(tmp_path / "cache"))
    store: ObjectStore = request.getfixturevalue("object_store")
    return Two(Location.of(store.url(), store.options))


def has(space: Space, *texts: str) -> bool:
    """Whether another handle finds all these texts, intact."""
    space.refresh(now=True)
    for rows in (make_rows([text]) for text in texts):
        if space.snapshot.find(rows.keys)[0] < 0:
            return False
        values, damaged = read_all(space, rows)
        if damaged.any() or values.tobytes() != rows.values.tobytes():
            return False
    return True


@pytest.mark.parametrize("fresh", [0.0, 600.0], ids=["looks again", "looked a moment ago"])
@pytest.mark.parametrize("again", [0, 1, 3, 4], ids=lambda n: f"made again with {n} commits")
def test_what_is_added_is_in_the_table_that_is_there(
    two: Two, again: int, fresh: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_module, "FRESH_SECONDS", fresh)
    mine, theirs = two.open(), two.open()
    for i in range(3):
        mine.add(make_rows([f"mine {i}"]))
    theirs.refresh()
    theirs.location.remove()
    for i in range(again):
        theirs.add(make_rows([f"theirs {i}"]))
    mine.add(make_rows(["mine 3"]))
    assert has(two.open(), "mine 3", *(f"theirs {i}" for i in range(again)))
    mine.add(make_rows(["mine 0"]))  # which it has seen, in the table that was removed
    assert has(two.open(), "mine 0", "mine 3") and len(two.open().refresh()) == again + 2


@pytest.mark.parametrize("again", [0, 3])
def test_a_table_that_was_removed_is_not_taken_for_one_of_as_many_versions(
    two: Two, again: int
) -> None:
    mine, theirs = two.open(), two.open()
    for i in range(3):
        mine.add(make_rows([f"mine {i}"]))
    theirs.location.remove()
    for i in range(again):
        theirs.add(make_rows([f"theirs {i}"]))
    assert len(mine.refresh(now=True)) == again
    mine.add(make_rows(["mine 0"]))
    assert has(two.open(), "mine 0")


def test_a_refresh_finds_nothing_where_the_table_was_removed(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_module, "FRESH_SECONDS", 0.0)
    mine = two.open()
    mine.add(make_rows(["a"]))
    two.open().location.remove()
    assert len(mine.refresh()) == 0 and len(mine.refresh(now=True)) == 0


def test_what_is_removed_after_it_was_listed_is_passed_over(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = two.open()
    space.add(make_rows(["a"]))
    assert open_listed(space.location) is not None
    listed = two.location.tables()
    space.location.remove()
    assert open_listed(space.location) is None
    monkeypatch.setattr(type(two.location), "tables", lambda _: listed)
    database = Database(two.location, writable=False)
    assert list(database.spaces()) == [] and _opened(listed) == ([], [])


def test_a_table_that_is_removed_while_it_is_opened_cannot_be_written(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs a run no vectors; that there is no space would end it."""
    space, rows = two.open(), make_rows(["a"])
    space.add(rows)

    def gone(*_: object) -> None:
        raise ConfigError("there is no Lance table")

    monkeypatch.setattr(space_module, "open_table", gone)
    for write in (lambda: space.add(make_rows(["b"])), lambda: space.drop(rows.keys)):
        with pytest.raises(CacheWriteError, match="it was there, and was removed meanwhile"):
            write()
