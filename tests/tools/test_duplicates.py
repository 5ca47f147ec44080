"""Rows of one key: which of them stays, and that no key and no vector is lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from embcache import ConfigError
from embcache.store import Database, Location, Rows, Space
from embcache.store.verify import batch_keys
from embcache.tools.check import check_space
from embcache.tools.compact import compact_space
from embcache.tools.duplicates import remove_duplicates
from tests.object_store import Remote
from tests.spaces import IDENTITY, folder, make_rows, read_all

Open = Callable[..., Space]
TEXTS = [f"text {i}" for i in range(40)]


@pytest.fixture
def space(open_space: Open) -> Space:
    return open_space(compact_automatically=False)


def append(space: Space, rows: Rows) -> None:
    """As a process does that does not see what others commit at the same moment."""
    space.append(rows.to_arrow(space.open().schema, store_text=True), rows.values.shape[1])


def times(space: Space) -> Counter[bytes]:
    """How often each key is there."""
    return Counter(
        key.tobytes() for batch in space.open().scan(["key"]) for key in batch_keys(batch)
    )


def row_ids(space: Space) -> list[int]:
    return sorted(i for batch in space.open().scan([]) for i in batch["_rowid"].to_pylist())


def damage(space: Space, vector: np.ndarray) -> None:
    """Flip a bit of a vector on disk."""
    for path in (folder(space) / "data").iterdir():
        raw = bytearray(path.read_bytes())
        if (at := raw.find(vector.tobytes())) >= 0:
            raw[at + 5] ^= 1
            path.write_bytes(raw)
            return
    raise AssertionError("the vector is in no file")


def test_what_readers_get_stays_bit_by_bit(space: Space, open_space: Open) -> None:
    """Three copies, in fragments of their own and within one."""
    first = make_rows(TEXTS)
    space.add(first)
    append(space, make_rows([*TEXTS[:10], *TEXTS[:5], "new", "new"], seed=1))
    append(space, make_rows(["new", "other"], seed=2))
    everything = make_rows([*TEXTS, "new", "other"])
    before, failed = read_all(open_space(), everything)
    assert not failed.any() and before[:40].tobytes() == first.values.tobytes()
    assert check_space(space).duplicates == 17
    assert remove_duplicates(space.location) == 17
    assert set(times(space).values()) == {1} and len(space.open()) == 42
    assert row_ids(space) == [*range(40), 55, 58]
    after, failed = read_all(open_space(), everything)
    assert not failed.any() and after.tobytes() == before.tobytes()
    report = check_space(space)
    assert report.ok and report.duplicates == 0
    version = space.open().dataset.version
    assert remove_duplicates(space.location) == 0 and space.open().dataset.version == version


def test_a_later_row_stays_where_the_first_is_damaged(space: Space, open_space: Open) -> None:
    rows = [make_rows(TEXTS, seed=seed) for seed in range(3)]
    space.add(rows[0])
    append(space, rows[1])
    append(space, rows[2])
    damage(space, rows[0].values[3])
    damage(space, rows[0].values[4])
    damage(space, rows[1].values[4])
    damage(space, rows[2].values[5])
    assert remove_duplicates(space.location) == 80
    values, failed = read_all(open_space(), rows[0])
    expected = rows[0].values.copy()
    expected[3], expected[4] = rows[1].values[3], rows[2].values[4]
    assert not failed.any() and values.tobytes() == expected.tobytes()
    assert set(times(space).values()) == {1}


def test_all_stay_where_none_is_sound(space: Space) -> None:
    """Which of them can be mended is for a check to find out."""
    rows = [make_rows(TEXTS, seed=seed) for seed in range(2)]
    space.add(rows[0])
    append(space, rows[1])
    for part in rows:
        damage(space, part.values[7])
    assert remove_duplicates(space.location) == 39
    counts = times(space)
    assert counts[rows[0].keys[7].tobytes()] == 2 and counts.total() == 41


def test_a_row_that_has_the_key_of_another_text_is_not_kept(space: Space, open_space: Open) -> None:
    rows = make_rows(TEXTS)
    space.add(replace(rows, columns={**rows.columns, "text": ["wrong", *TEXTS[1:]]}))
    right = make_rows(TEXTS[:2], seed=1)
    append(space, right)
    assert remove_duplicates(space.location) == 2
    values, failed = read_all(open_space(), rows)
    assert not failed.any() and (values[0] == right.values[0]).all()
    assert (values[1:] == rows.values[1:]).all() and check_space(space).ok


def test_where_only_texts_cannot_be_read_vectors_count(space: Space, open_space: Open) -> None:
    """One byte that is no UTF-8 fails a batch of texts, and the vectors of all are intact."""
    rows = make_rows([f"{text} of the first" for text in TEXTS])
    space.add(rows)
    append(space, replace(rows, values=rows.values + 1))
    for path in (folder(space) / "data").iterdir():
        raw = bytearray(path.read_bytes())
        if rows.values[0].tobytes() in raw:
            raw[raw.index(b"text 0 of the first")] = 0xFF
            path.write_bytes(raw)
    assert remove_duplicates(space.location) == 40
    values, failed = read_all(open_space(), rows)
    assert not failed.any() and values.tobytes() == rows.values.tobytes()


def test_nothing_goes_where_keys_cannot_be_read(
    space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(TEXTS)
    space.add(rows)
    append(space, rows)
    newest = max((folder(space) / "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])
    version = space.open().dataset.version
    with caplog.at_level(logging.WARNING):
        assert remove_duplicates(space.location) == 0
    assert "Duplicates stay where keys cannot be read. Reading the keys of" in caplog.text
    assert space.open().dataset.version == version


def test_a_table_without_stable_row_ids_is_let_be(space: Space) -> None:
    space.add(make_rows(TEXTS))
    append(space, make_rows(TEXTS))
    rows = space.open().dataset.to_table()
    space.location.remove()
    lance.write_dataset(rows, str(space.location))
    assert not space.open().dataset.has_stable_row_ids
    assert remove_duplicates(space.location) == 0 and len(space.open()) == 80


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_few_rows(space: Space, texts: list[str]) -> None:
    space.add(make_rows(["one"]))
    if not texts:
        space.drop(make_rows(["one"]).keys)
    assert remove_duplicates(space.location) == 0 and len(space.open()) == len(texts)


def test_scores(scores: Space) -> None:
    columns = {"query": "a", "document": ["b", "c"], "query_prefix": "q: ", "document_prefix": ""}
    values = np.array([[0.75], [0.125]], np.float32)
    append(scores, Rows(scores.refresh().keys(), values, {**columns, "task": "Task"}))
    assert len(scores.open()) == 4
    assert remove_duplicates(scores.location) == 2
    (batch,) = scores.open().scan(["score"])
    assert batch["score"].to_pylist() == [0.5, 0.25]


def test_without_texts(open_space: Open) -> None:
    space = open_space(store_text=False, compact_automatically=False)
    rows = make_rows(TEXTS)
    space.add(rows)
    table = make_rows(TEXTS, seed=1).to_arrow(space.open().schema, store_text=False)
    space.append(table, 8)
    assert remove_duplicates(space.location) == 40
    values, failed = read_all(open_space(), rows)
    assert not failed.any() and values.tobytes() == rows.values.tobytes()


def test_what_others_commit_between_reading_and_deleting(
    space: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were moved are found by their ids, and what was added is met the next time."""
    first, delete = make_rows(TEXTS), Space.delete_rows
    space.add(first)
    append(space, make_rows(TEXTS[:20], seed=1))

    def meanwhile(self: Space, ids: np.ndarray) -> None:
        other = open_space(compact_automatically=False)
        append(other, make_rows(TEXTS[:5], seed=2))
        other.drop(first.keys[30:31])
        other.optimize(timedelta(0))
        delete(self, ids)

    monkeypatch.setattr(Space, "delete_rows", meanwhile)
    assert remove_duplicates(space.location) == 20
    monkeypatch.undo()
    assert row_ids(space) == [*range(30), *range(31, 40), *range(60, 65)]
    assert remove_duplicates(space.location) == 5
    values, failed = read_all(open_space(), first.take(np.delete(np.arange(40), 30)))
    assert not failed.any() and values.tobytes() == np.delete(first.values, 30, 0).tobytes()


def in_store(remote: Remote) -> Space:
    database = Database(remote.url, remote.options, writable=True)
    return database.space(IDENTITY, IDENTITY.model, "vllm 1.0", compact_automatically=False)


def test_in_a_store(remote: Remote) -> None:
    space, rows = in_store(remote), make_rows(TEXTS)
    space.add(rows)
    append(space, make_rows([*TEXTS[:10], "new"], seed=1))
    append(space, make_rows([*TEXTS[:5], "new"], seed=2))
    report = compact_space(space)
    assert (report.duplicates, report.fragments_after) == (16, 1)
    assert set(times(space).values()) == {1} and len(space.open()) == 41
    values, failed = read_all(in_store(remote), rows)
    assert not failed.any() and values.tobytes() == rows.values.tobytes()
    assert compact_space(space).duplicates == 0


def test_two_at_once_in_a_store_beside_a_writer(remote: Remote) -> None:
    """There are no locks: each decides for itself, and both decide the same."""
    space, rows = in_store(remote), make_rows(TEXTS)
    space.add(rows)
    append(space, make_rows(TEXTS[:30], seed=1))

    def write() -> None:
        writer = in_store(remote)
        for seed in range(3):
            append(writer, make_rows(TEXTS[20:35], seed=seed))

    with ThreadPoolExecutor(3) as pool:
        compacting = [pool.submit(compact_space, in_store(remote)) for _ in range(2)]
        pool.submit(write).result()
        assert all(one.result().duplicates >= 0 for one in compacting)
    compact_space(space)
    values, failed = read_all(in_store(remote), rows)
    assert not failed.any() and values.tobytes() == rows.values.tobytes()
    assert set(times(space).values()) == {1} and len(space.open()) == 40


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no space: there is no Lance table"):
        remove_duplicates(Location.of(tmp_path))
