from __future__ import annotations

from array import array
from itertools import pairwise

import pyarrow as pa
import pytest

from embcache.cluster.blocks import (
    BLOCK_BYTES,
    Block,
    Sizes,
    first_block,
    packed,
    shuffled,
    sized,
    unpacked,
)
from embcache.engine.runs import text_sizes
from embcache.pipeline.chunks import WINDOW_BYTES, WINDOW_TEXTS
from embcache.warm.batches import BadRow, TextBatch

OF_300 = Sizes(1, 16 * 300)
MANY = [f"text {i}" for i in range(1000)]


@pytest.mark.parametrize(
    ("total", "replicas", "texts"),
    [
        (0, 1, 64),
        (1000, 1, 64),
        (16 * 300, 1, 300),
        (16 * 300, 2, 150),
        (10**9, 100, WINDOW_TEXTS),
    ],
)
def test_how_many_texts_a_block_has(total: int, replicas: int, texts: int) -> None:
    assert Sizes(replicas, total).next(read=0) == Sizes(replicas, total).next(10**9) == texts


@pytest.mark.parametrize(("read", "texts"), [(0, 64), (700, 87), (10_000, 1250), (10**7, 16_384)])
def test_where_the_total_is_not_known_blocks_grow(read: int, texts: int) -> None:
    """The last of two replicas is never alone with more than an eighth."""
    assert Sizes(2).next(read) == texts


def test_a_block_is_one_window() -> None:
    """Of two windows, the second would not see what the first has staged."""
    assert Sizes(1, 10**12).next(0) <= WINDOW_TEXTS and 2 * BLOCK_BYTES <= WINDOW_BYTES


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
    blocks = list(sized(batches, OF_300))
    assert [len(block.texts) for block in blocks] == [300, 200, 300, 200]
    assert [text for block in blocks for text in block.texts] == MANY
    assert blocks[1].place(0) == "a, line 300" and blocks[3].prompt == "p: "


def test_a_text_larger_than_a_block_is_one_by_itself() -> None:
    huge = "x" * (BLOCK_BYTES + 1)
    blocks = list(sized([TextBatch(["a", huge, "b"], "s")], OF_300))
    assert [block.texts for block in blocks] == [["a"], [huge], ["b"]]
    wide = ["x" * 10**6] * 10
    assert all(
        text_sizes(b.texts).sum() <= BLOCK_BYTES for b in sized([TextBatch(wide, "s")], OF_300)
    )


def test_each_job_has_an_order_of_its_own() -> None:
    batches = [TextBatch([str(i)], "s") for i in range(200)]
    orders = [[batch.texts[0] for batch in shuffled(batches, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]  # what is read again is the same
    assert all(sorted(order, key=int) == [str(i) for i in range(200)] for order in orders)
    taken: list[int] = []
    stream = shuffled((taken.append(i) or batch for i, batch in enumerate(batches)), 3)
    next(stream)
    assert len(taken) == 1  # nobody waits for what a slow source has not given yet
    for given, _ in enumerate(stream, 2):
        assert len(taken) <= given + 33
    both = [set(order[:100]) for order in orders[1:]]
    assert 100 < len(set.union(*both)) < 140  # neighbours, so that memory is bounded


def test_blocks_travel_as_tables() -> None:
    batch = TextBatch(
        ["a", "\ud800", "", "é" * 100], "s", numbers=array("q", range(3, 7)), prompt_type="query"
    )
    blocks = [
        Block(first_block(3), batch, [BadRow("\udcffs, row 1", "none")]),
        Block(first_block(3) + 1, None),
    ]
    tables = [packed(block) for block in blocks]
    assert [table.num_rows for table in tables] == [1, 1]
    assert unpacked(tables[0]) == blocks[:1]
    assert unpacked(pa.concat_tables(tables)) == blocks
    assert unpacked(pa.concat_tables(tables).slice(1)) == blocks[1:]
