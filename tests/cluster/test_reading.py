"""What is read on the cluster, without one: a desk that answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embcache.cluster.blocks import Block, Sizes, first_block, unpacked
from embcache.cluster.desk import DEALT_WITH
from embcache.cluster.reading import Read, feed_reader, part_reader, told
from embcache.errors import CacheError, InputError
from embcache.warm import Columns
from embcache.warm.batches import TextBatch
from embcache.warm.parts import Part, Selected, parts
from embcache.warm.streams import Shard

ray = pytest.importorskip("ray", reason="Ray is not installed")


class FakeDesk:
    """Notes failures, and gives out what it has."""

    def __init__(self, *data: TextBatch) -> None:
        self.failures: list[tuple[str, str]] = []
        self.data = data
        self.fail = SimpleNamespace(remote=lambda *said: self.failures.append(said))
        self.get = SimpleNamespace(remote=self._get)
        self.read: list[tuple[Any, ...]] = []
        self.begin_reading = self.end_reading = SimpleNamespace(
            remote=lambda *said: self.read.append(said)
        )

    def _get(self, block: int) -> TextBatch | None:
        number = block - first_block(3)
        return self.data[number] if number < len(self.data) else None


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    return FakeDesk()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows: list[dict[str, Any]] = [{"text": f"text {i}"} for i in range(700)]
    rows[0] = rows[650] = {"body": "no text"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def blocks_of(read: Read) -> list[Block]:
    return [block for table in read() for block in unpacked(table)]


def part_of(path: Path) -> Part:
    [part] = parts("jsonl", [path], Columns("text"))
    return part


def test_a_part_in_blocks(lines: Path, desk: FakeDesk) -> None:
    read = part_reader(5, part_of(lines), Sizes(1, 16 * 300), 0, desk)
    blocks = blocks_of(read)
    texts = [text for block in blocks if block.batch for text in block.batch.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(700) if i not in (0, 650))
    again = [block.batch.texts for block in blocks_of(read) if block.batch]
    assert again == [block.batch.texts for block in blocks if block.batch]
    assert [block.number for block in blocks] == [first_block(5) + i for i in range(len(blocks))]
    bad = [row.place for block in blocks for row in block.bad]
    assert bad == [f"{lines}, line 1", f"{lines}, line 651"]
    assert blocks_of(read) == blocks  # Ray reads again what is lost
    assert not desk.failures


def test_a_part_with_bad_rows_alone(tmp_path: Path, desk: FakeDesk) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": null}\n{"text": 3}\n')
    [block] = blocks_of(part_reader(2, part_of(path), Sizes(1, 16 * 300), 0, desk))
    assert (block.number, block.batch, len(block.bad)) == (first_block(2), None, 2)


def test_many_bad_rows_are_handed_on_by_and_by(tmp_path: Path, desk: FakeDesk) -> None:
    path = tmp_path / "corpus.jsonl"
    rows: list[dict[str, Any]] = [{"text": None}] * 20_000
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "a"}, *rows[:3]]))
    read = part_reader(3, part_of(path), Sizes(1), 0, desk)
    blocks = blocks_of(read)
    assert [len(block.bad) for block in blocks] == [8192, 8192, 3616 + 3]
    assert [block.number - first_block(3) for block in blocks] == [0, 1, 2]
    assert [block.batch and block.batch.texts for block in blocks] == [None, None, ["a"]]
    assert desk.read == [(3, str(path)), (3,)]
    assert blocks_of(read) == blocks
    places = [row.place for block in blocks for row in block.bad]
    assert places == [f"{path}, line {n}" for n in (*range(1, 20_001), *range(20_002, 20_005))]


def test_a_part_of_nothing(tmp_path: Path, desk: FakeDesk) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    assert blocks_of(part_reader(2, part_of(path), Sizes(1, 16 * 300), 0, desk)) == []


def test_selected_texts(lines: Path, desk: FakeDesk) -> None:
    chosen = Selected(part_of(lines), Shard(2, 3), limit=600)
    texts = [
        text
        for block in blocks_of(part_reader(0, chosen, Sizes(1, 16 * 300), 0, desk))
        for text in (block.batch.texts if block.batch else ())
    ]
    every = [f"text {i}" for i in range(700) if i not in (0, 650)]
    assert texts == every[:600][1::3]


def test_the_desk_hears_what_cannot_be_read(tmp_path: Path, desk: FakeDesk) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}')
    part = part_of(path)
    path.unlink()
    with pytest.raises(InputError, match=r"corpus\.jsonl"):
        blocks_of(part_reader(0, part, Sizes(1, 16 * 300), 0, desk))
    [(kind, message)] = desk.failures
    assert kind == "InputError" and "corpus.jsonl" in message


def test_errors_of_others_are_the_engines(desk: FakeDesk) -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"), told(desk, "on host a: "):
        print(1 // 0)
    with pytest.raises(CacheError, match="full"), told(desk, "on host b: "):
        raise CacheError("full")
    assert desk.failures == [
        ("EngineError", "on host a: ZeroDivisionError: integer division or modulo by zero"),
        ("CacheError", "on host b: full"),
    ]


def test_what_the_driver_puts_on_the_desk(desk: FakeDesk) -> None:
    batch = TextBatch(["a", "b"], "task")
    desk.data = (batch, DEALT_WITH, batch)
    blocks = blocks_of(feed_reader(3, desk))
    assert [block.number - first_block(3) for block in blocks] == [0, 1, 2]
    assert [block.batch for block in blocks] == [batch, None, batch]
