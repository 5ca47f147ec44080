from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest

from embcache.cluster.blocks import (
    BLOCK_BYTES,
    Block,
    block_texts,
    first_block,
    packed,
    sized,
    unpacked,
)
from embcache.engine.runs import text_sizes
from embcache.pipeline.chunks import WINDOW_BYTES, WINDOW_TEXTS
from embcache.warm.batches import BadRow, TextBatch

MANY = [f"text {i}" for i in range(1000)]


@pytest.mark.parametrize(
    ("total", "replicas", "texts"),
    [
        (None, 8, 2048),
        (0, 1, 256),
        (1000, 1, 256),
        (16 * 300, 1, 300),
        (16 * 300, 2, 256),
        (10**9, 100, WINDOW_TEXTS),
    ],
)
def test_how_many_texts_a_block_has(total: int | None, replicas: int, texts: int) -> None:
    assert block_texts(total, replicas) == texts


def test_a_block_is_one_window() -> None:
    """Of two windows, the second would not see what the first has staged."""
    assert block_texts(10**12, 1) <= WINDOW_TEXTS and 2 * BLOCK_BYTES <= WINDOW_BYTES


def test_no_two_parts_share_a_number() -> None:
    firsts = [first_block(part) for part in (0, 1, 2, 10**6)]
    assert firsts[0] == 0 and all(b - a >= 2**32 for a, b in pairwise(firsts))
    assert firsts[-1] < 2**63  # as Arrow has it


def test_batches_become_blocks() -> None:
    batches = [
        TextBatch(MANY[:10], "a", numbers=range(10), unit="line"),
        TextBatch(MANY[10:500], "a", numbers=range(10, 500), unit="line"),
        TextBatch(MANY[500:], "b", prompt="p: "),
    ]
    blocks = list(sized(batches, 300))
    assert [len(block.texts) for block in blocks] == [300, 200, 300, 200]
    assert [text for block in blocks for text in block.texts] == MANY
    assert blocks[1].place(0) == "a, line 300" and blocks[3].prompt == "p: "


def test_a_text_larger_than_a_block_is_one_by_itself() -> None:
    huge = "x" * (BLOCK_BYTES + 1)
    blocks = list(sized([TextBatch(["a", huge, "b"], "s")], 300))
    assert [block.texts for block in blocks] == [["a"], [huge], ["b"]]
    wide = ["x" * 10**6] * 10
    assert all(text_sizes(b.texts).sum() <= BLOCK_BYTES for b in sized([TextBatch(wide, "s")], 300))


def test_blocks_travel_as_tables() -> None:
    batch = TextBatch(["a", "\ud800", "", "é" * 100], "s", numbers=range(3, 7), prompt_type="query")
    blocks = [
        Block(first_block(3), batch, [BadRow("s, row 1", "none")]),
        Block(first_block(3) + 1, None),
    ]
    tables = [packed(block) for block in blocks]
    assert [table.num_rows for table in tables] == [1, 1]
    assert unpacked(tables[0]) == blocks[:1]
    assert unpacked(pa.concat_tables(tables)) == blocks
    assert unpacked(pa.concat_tables(tables).slice(1)) == blocks[1:]
