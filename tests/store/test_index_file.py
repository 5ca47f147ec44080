"""The index on disk: what it saves, and that nothing rests on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embcache.store import Space, compaction, index, index_file
from embcache.store.index import KeyIndex, KeyParts
from embcache.store.reader import Reader
from embcache.store.snapshot import SpaceSnapshot, fragment_marks
from tests.spaces import folder, make_rows, read_all

Open = Callable[..., Space]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "LEAST_KEYS", 10)


@pytest.fixture
def space(open_space: Open) -> Space:
    """A space of 3 fragments of 10 rows, whose index is kept."""
    space = open_space(compact_automatically=False)
    for at in range(0, 30, 10):
        space.add(make_rows([str(i) for i in range(at, at + 10)]))
    space.keep_index()
    return space


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many fragments are read for their keys, one entry an opening."""
    import embcache.store.snapshot as module

    real, counts = module._index_keys, []

    def count(reader: Reader, start: int, stop: int) -> KeyIndex:
        counts.append(stop - start)
        return real(reader, start, stop)

    monkeypatch.setattr(module, "_index_keys", count)
    return counts


def test_what_is_kept_is_not_read_again(
    space: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = scanned(monkeypatch)
    found = open_space().refresh()
    assert counts == [] and found.kept == 30 and len(found.index) == 30
    rows = make_rows([str(i) for i in range(30)])
    assert (found.find(rows.keys) == space.refresh().find(rows.keys)).all()
    space.add(make_rows(["more"]))
    assert len(open_space().refresh().index) == 31 and counts == [1, 1]  # the writer's own, too


def test_deleted_rows_are_misses_and_what_is_before_them_is_kept(
    space: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.drop(make_rows(["15"]).keys)
    counts = scanned(monkeypatch)
    found = open_space().refresh()
    assert counts == [2] and found.kept == 10
    texts = [str(i) for i in range(30)]
    assert [p >= 0 for p in found.find(make_rows(texts).keys)] == [t != "15" for t in texts]


def test_a_compaction_makes_it_of_no_use_and_no_harm(space: Space, open_space: Open) -> None:
    space.table().optimize()
    other = open_space()
    rows = make_rows([str(i) for i in range(10)])
    values, damaged = read_all(other, rows)
    assert other.snapshot.kept == 0 and not damaged.any() and (values == rows.values).all()
    other.keep_index()
    assert open_space().refresh().kept == 30


def test_after_a_merge_of_the_last_fragments_the_rest_is_shared_still(
    space: Space, open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would have a copy of the index else, until it is written again."""
    monkeypatch.setattr(index, "_COPIED_UP_TO", 0)
    (folder(space) / index_file.FILE).unlink()
    one_part = open_space(compact_automatically=False)
    one_part.refresh()
    for i in range(4):
        one_part.add(make_rows([f"small {i}"]))
    one_part.keep_index()
    index_file.save(
        folder(space), fragment_marks(space.open()), KeyParts((whole(open_space().refresh()),))
    )
    mapped: list[KeyParts] = []
    load = index_file.load

    def remember(table: Path, rows: int) -> tuple[index_file.Marks, KeyParts] | None:
        found = load(table, rows)
        assert found is not None
        mapped.append(found[1])
        return found

    monkeypatch.setattr(index_file, "load", remember)
    monkeypatch.setattr(compaction, "FANOUT", 4)
    assert compaction.merge_fragments(space.location, lambda: True)
    found = open_space().refresh()
    assert found.kept == 30 and len(found.index) == 34
    assert np.shares_memory(found.index.parts[0].heads, mapped[0].parts[0].heads)
    rows = make_rows([*(str(i) for i in range(30)), *(f"small {i}" for i in range(4))])
    assert not read_all(open_space(), rows)[1].any()
    index_file.save(folder(space), fragment_marks(space.open()), found.index)
    again = load(folder(space), 34)
    assert again is not None and len(again[1]) == 34 and not any(p.gone for p in again[1].parts)


def whole(snapshot: SpaceSnapshot) -> KeyIndex:
    """A snapshot's index in one part, as of a space that was opened from its keys."""
    first, *more = snapshot.index.parts
    for part in more:
        first = first.merged(part)
    return first


def test_it_is_written_again_once_a_quarter_as_many_keys_are_new(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "LEAST_KEYS", 4)
    before = (folder(space) / index_file.FILE).stat().st_ino
    space.add(make_rows([f"a{i}" for i in range(6)]))
    space.keep_index()
    assert (folder(space) / index_file.FILE).stat().st_ino == before
    space.add(make_rows(["one"]))
    space.keep_index()
    assert (folder(space) / index_file.FILE).stat().st_ino != before
    assert [p.name for p in folder(space).glob(".creating-*")] == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "garbled": lambda raw: b"\xff" * len(raw),
    "flips": lambda raw: bytes(byte ^ (at % 50 == 20) for at, byte in enumerate(raw)),
    "text": lambda raw: b"hello",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_passed_over(
    how: str, space: Space, open_space: Open, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(space) / index_file.FILE
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    caplog.set_level("INFO", "embcache")
    rows = make_rows([str(i) for i in range(10)])
    found = open_space().refresh()
    assert found.kept == 0 and (found.find(rows.keys) >= 0).all()
    assert "is not used, and made anew" in caplog.text


def test_every_flip_is_noticed(space: Space) -> None:
    path = folder(space) / index_file.FILE
    raw, sound = path.read_bytes(), index_file.load(folder(space), 30)
    assert sound is not None
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(raw), 300).tolist():
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :])
        found = index_file.load(folder(space), 30)
        assert found is None or (
            found[0] == sound[0] and (found[1].keys() == sound[1].keys()).all()
        ), at


HOSTILE: dict[str, Callable[[list[tuple[object, ...]]], object]] = {
    "no list": lambda marks: {"a": 1},
    "numbers": lambda marks: [1, 2],
    "deep": lambda marks: json.loads("[" * 500 + "]" * 500),
    "of other fragments": lambda marks: [(9, *mark[1:]) for mark in marks],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_one_that_somebody_made_up(what: str, space: Space, open_space: Open) -> None:
    reader = space.open()
    sound = space.snapshot.index
    index_file.save(folder(space), HOSTILE[what](fragment_marks(reader)), sound)  # type: ignore[arg-type]
    rows = make_rows([str(i) for i in range(30)])
    found = open_space().refresh()
    assert found.kept == 0 and (found.find(rows.keys) >= 0).all()


def test_positions_that_somebody_made_up_give_no_wrong_row(space: Space, open_space: Open) -> None:
    rows = make_rows([str(i) for i in range(30)])
    index = KeyIndex.build(rows.keys[::-1].copy(), np.arange(30, dtype=np.uint64))
    far = KeyIndex(index.heads, index.tails, index.positions * 2)
    for made_up in (index, far):
        index_file.save(folder(space), fragment_marks(space.open()), KeyParts((made_up,)))
        snapshot = open_space().refresh()
        positions = snapshot.find(rows.keys)
        there = np.flatnonzero(positions >= 0)
        values, damaged = snapshot.read_all(positions[there], rows.keys[there])
        assert ((values == rows.values[there]).all(axis=1) | damaged).all()


def test_other_columns(space: Space) -> None:
    path = folder(space) / index_file.FILE
    with pa.ipc.new_file(str(path), pa.schema([("head", pa.string())])) as writer:
        writer.write_batch(pa.record_batch({"head": ["x"]}))
    assert index_file.load(folder(space), 30) is None
    path.unlink()
    assert index_file.load(folder(space), 30) is None


def test_one_that_cannot_be_written_costs_nothing(
    space: Space, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    space.add(make_rows([f"a{i}" for i in range(20)]))
    monkeypatch.setattr(os, "replace", refuse)
    caplog.set_level("INFO", "embcache")
    space.keep_index()
    space.keep_index()
    assert caplog.text.count("No space left on device") == 1
    assert list(folder(space).glob(".creating-*")) == []


def test_who_has_it_mapped_goes_on_when_it_is_replaced_or_removed(
    space: Space, open_space: Open
) -> None:
    rows = make_rows([str(i) for i in range(30)])
    before = open_space().refresh()
    space.add(make_rows([f"a{i}" for i in range(20)]))
    space.keep_index()
    (folder(space) / index_file.FILE).unlink()
    assert (before.find(rows.keys) >= 0).all() and before.kept == 30


def test_another_process_reads_it(space: Space) -> None:
    code = (
        "import sys; from pathlib import Path; from embcache.store import index_file\n"
        "marks, index = index_file.load(Path(sys.argv[1]), 30); print(len(marks), len(index))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder(space))], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["3", "30"]


def test_files_of_other_hosts_are_read_and_not_mapped(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_LOCAL", frozenset())
    mapped: list[str] = []
    monkeypatch.setattr(pa, "memory_map", mapped.append)
    found = index_file.load(folder(space), 30)
    assert found is not None and len(found[1]) == 30 and mapped == []
    assert not index_file._is_local(Path("/proc/self/stat"))


def test_rows_before_the_first_one(space: Space) -> None:
    keys = make_rows([str(i) for i in range(30)]).keys
    index = KeyIndex.build(keys, np.arange(30, dtype=np.uint64))
    wrong = KeyIndex(index.heads, index.tails, np.full(30, -(2**63), np.int64))
    index_file.save(folder(space), fragment_marks(space.open()), KeyParts((wrong,)))
    assert index_file.load(folder(space), 30) is None


def test_one_that_is_compressed_is_not_unpacked(space: Space) -> None:
    """Two gigabytes of zeros, which would be asked for; of nothing but what is written."""
    path = folder(space) / index_file.FILE
    schema = pa.ipc.open_file(str(path)).schema
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    zeros = np.zeros(2**26, np.uint64)
    columns = [pa.array(zeros), pa.array(zeros), pa.array(zeros.view(np.int64))]
    with pa.ipc.new_file(str(path), schema, options=options) as file:
        for _ in range(2):
            file.write_batch(pa.record_batch(columns, schema=schema))
    assert path.stat().st_size < 2**20
    before = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    assert index_file.load(folder(space), 30) is None
    assert before == (pa.total_allocated_bytes(), pa.default_memory_pool().max_memory())


def test_one_that_is_too_large_for_the_table_is_not_read(
    space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(folder(space) / index_file.FILE, 2**37)
    caplog.set_level("INFO", "embcache")
    assert index_file.load(folder(space), 30) is None
    assert "it has 137,438,953,472 bytes, for 30 rows" in caplog.text


def test_parts_without_keys(space: Space) -> None:
    none = np.empty(0, np.uint64)
    empty = KeyIndex(none, none, none.view(np.int64))
    index_file.save(folder(space), [(1, 0)], KeyParts((empty, *space.snapshot.index.parts)))
    found = index_file.load(folder(space), 30)
    assert found is not None and (found[1].keys() == space.snapshot.keys()).all()


def test_it_is_mapped_and_not_copied(space: Space) -> None:
    before = pa.total_allocated_bytes()
    found = index_file.load(folder(space), 30)
    assert found is not None and found[1].parts[0].heads.flags.writeable is False
    assert pa.total_allocated_bytes() == before
