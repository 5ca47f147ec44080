"""Blocks: the texts that one task of Ray Data deals with, and how they get into its tables."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from embcache.pipeline.chunks import WINDOW_TEXTS
from embcache.warm.batches import BATCH_BYTES, BadRow, TextBatch
from embcache.warm.streams import join_small

BLOCK_BYTES = BATCH_BYTES
"""Bytes of a block's texts in memory, at most: a few of them wait for each replica."""

_LEAST = 256
_EACH = 16  # blocks for each replica, at least: what is left at the end is shared out evenly
_UNKNOWN = 2048
_PART_BITS = 32


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


def block_texts(total: int | None, replicas: int) -> int:
    """How many texts a block has: few enough that all replicas have work until the end.

    Args:
        total: How many texts there are, about; None if that is not known.
        replicas: How many replicas share them.
    """
    if total is None:
        return _UNKNOWN
    return max(_LEAST, min(WINDOW_TEXTS, total // (replicas * _EACH)))


def first_block(part: int) -> int:
    """Number of the first block of a part of the sources; the others follow it."""
    return part << _PART_BITS


def sized(batches: Iterable[TextBatch], texts: int) -> Iterator[TextBatch]:
    """The same texts in batches that make good blocks.

    Args:
        batches: A stream of texts.
        texts: How many a block has at most.
    """
    for batch in join_small(batches, texts, BLOCK_BYTES):
        yield from batch.pieces(texts, BLOCK_BYTES)


def packed(block: Block) -> pa.Table:
    """A block as a table of one row, which is how Ray Data moves it.

    Pickled, since texts may hold what is no UTF-8, which is for the replica to refuse.
    """
    return pa.table({"block": [pickle.dumps(block)]})


def unpacked(table: pa.Table) -> list[Block]:
    """The blocks in a table that `packed` made, or several of them joined."""
    return [pickle.loads(one.as_buffer()) for one in table.column("block")]
