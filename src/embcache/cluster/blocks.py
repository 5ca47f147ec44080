"""Blocks: the texts that one task of Ray Data deals with, and how they get into its tables."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from embcache.pipeline.chunks import WINDOW_TEXTS
from embcache.warm.batches import BATCH_BYTES, BadRow, TextBatch
from embcache.warm.streams import join_small

BLOCK_BYTES = BATCH_BYTES
"""Bytes of a block's texts in memory, at most: a few of them wait for each replica."""

_LEAST = 64
_EACH = 16  # blocks for each replica, at least: what is left at the end is shared out evenly
_EACH_SO_FAR = 4  # the same of what was read; more would make the blocks of large sources too small
_AHEAD = 32  # blocks: 128 MB
_PART_BITS = 32
_NONE = TextBatch([], "")
_PLAIN = ("source", "prompt", "prompt_type", "unit")
_SCHEMA = pa.schema(
    [
        ("block", pa.int64()),
        ("texts", pa.list_(pa.large_binary())),
        ("numbers", pa.list_(pa.int64())),
        ("bad", pa.list_(pa.struct([("place", pa.binary()), ("reason", pa.binary())]))),
        *((name, pa.binary()) for name in _PLAIN),
    ]
)


@dataclass(frozen=True)
class Block:
    """Texts that one task deals with.

    Attributes:
        number: The same one whenever and wherever these texts are read.
        batch: The texts; None for rows without any.
        bad: Rows of the same part of a source that were left out while it was read.
    """

    number: int
    batch: TextBatch | None
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class Sizes:
    """How many texts blocks have: so few that all replicas have work until the end.

    Attributes:
        replicas: How many replicas share the texts.
        total: How many texts there are, about; None if that is not known. The blocks of a source
            then grow with what was read of it.
    """

    replicas: int
    total: int | None = None

    def next(self, read: int) -> int:
        """Texts of the next block, at most.

        Args:
            read: Texts of the same part of a source in earlier blocks.
        """
        known = read // _EACH_SO_FAR if self.total is None else self.total // _EACH
        return max(_LEAST, min(WINDOW_TEXTS, known // self.replicas))


def first_block(part: int) -> int:
    """Number of the first block of a part of the sources; the others follow it."""
    return part << _PART_BITS


def sized(batches: Iterable[TextBatch], sizes: Sizes) -> Iterator[TextBatch]:
    """The same texts in batches that make good blocks; the same ones each time.

    Args:
        batches: The texts of a part of a source.
        sizes: How many a block has at most.
    """
    read = 0
    for joined in join_small(batches, WINDOW_TEXTS, BLOCK_BYTES):
        for batch in joined.pieces(WINDOW_TEXTS, BLOCK_BYTES):
            at = 0
            while at < len(batch.texts):
                size = sizes.next(read)
                yield batch.cut(slice(at, at + size))
                at, read = at + size, read + size


def shuffled(batches: Iterable[TextBatch], seed: int) -> Iterator[TextBatch]:
    """The same batches in a random order, each at most some `_AHEAD` places from its own.

    Two jobs that warm one cache with the same texts do not know of each other. In the same order
    they would encode everything twice; so, each finds what the other one has committed.

    Args:
        batches: A stream.
        seed: Decides the order.
    """
    rng = random.Random(seed)
    held: list[TextBatch] = []
    given = 0
    for batch in batches:
        held.append(batch)
        if len(held) > min(_AHEAD, given):  # the first ones at once: a source may be slow
            at = rng.randrange(len(held))
            held[at], held[-1] = held[-1], held[at]
            given += 1
            yield held.pop()
    rng.shuffle(held)
    yield from held


def packed(block: Block) -> pa.Table:
    """A block as a table of one row, which is how Ray Data moves it."""
    batch = block.batch or _NONE
    row = {
        "block": block.number,
        "texts": [_bytes(text) for text in batch.texts],
        "numbers": list(batch.numbers),
        "bad": [{"place": _bytes(row.place), "reason": _bytes(row.reason)} for row in block.bad],
        **{name: _bytes(getattr(batch, name)) for name in _PLAIN},
    }
    return pa.Table.from_pylist([row], schema=_SCHEMA)


def unpacked(table: pa.Table) -> list[Block]:
    """The blocks in a table that `packed` made, or several of them joined."""
    return [_block(row) for row in table.to_pylist()]


def _block(row: Mapping[str, Any]) -> Block:
    texts = [_text(text) for text in row["texts"]]
    numbers = array("q", row["numbers"]) if row["numbers"] else ()
    batch = TextBatch(texts, numbers=numbers, **{name: _text(row[name]) for name in _PLAIN})
    bad = [BadRow(**{name: _text(value) for name, value in one.items()}) for one in row["bad"]]
    return Block(row["block"], batch if texts else None, bad)


def _bytes(text: str | None) -> bytes | None:
    """Texts, and names of files, may be no UTF-8: that is for whoever deals with them to refuse."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _text(raw: bytes | None) -> Any:
    return None if raw is None else raw.decode("utf-8", "surrogatepass")
