"""What Ray Data reads: the local readers, part by part, and what only the driver can read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embcache.cluster.blocks import Block, Sizes, first_block, packed, shuffled, sized
from embcache.errors import EmbcacheError
from embcache.warm.batches import BATCH_ROWS, BadRow, TextBatch, shown_name
from embcache.warm.streams import pulled

if TYPE_CHECKING:
    from embcache.warm.parts import Part, Selected

Read = Callable[[], Iterator[pa.Table]]
"""Yields blocks, see `packed`: the same ones each time, since Ray reads again what is lost."""


def datasource(reads: list[Read]) -> Any:
    """A data source of Ray Data, with one read task for each reader.

    Args:
        reads: The readers; they run anywhere on the cluster.

    Returns:
        A `ray.data.Datasource`.
    """
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Texts(Datasource):  # type: ignore[misc]  # what ray is, mypy does not look into
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            nothing = BlockMetadata(
                num_rows=None, size_bytes=None, input_files=None, exec_stats=None
            )
            return [ReadTask(read, nothing) for read in reads]

    return Texts()


def part_reader(number: int, part: Part | Selected, sizes: Sizes, seed: int, desk: Any) -> Read:
    """Reads a part of the sources.

    Args:
        number: The part's.
        part: What is read, by the readers that a local run has.
        sizes: How many texts a block has at most.
        seed: Decides the order of the blocks: the job's own, and the same when it reads again.
        desk: The job's desk, which is told of errors.
    """

    def read() -> Iterator[pa.Table]:
        import ray

        with told(desk):
            ray.get(desk.begin_reading.remote(number, shown_name(part.path)))
            block = first_block(number)
            for batch, bad in _with_bad_rows(part, sizes, seed):
                yield packed(Block(block, batch, bad))
                block += 1
            ray.get(desk.end_reading.remote(number))

    return read


def _with_bad_rows(
    part: Part | Selected, sizes: Sizes, seed: int
) -> Iterator[tuple[TextBatch | None, list[BadRow]]]:
    """Texts, and the rows that were left out before them; many of those come by themselves.

    A file may have no text in any of its rows, a hundred million of them: they fit no memory.
    """

    def push(give: Callable[[tuple[TextBatch | None, list[BadRow]]], None]) -> None:
        bad: list[BadRow] = []

        def hand_on(batch: TextBatch | None) -> None:
            found, bad[:] = list(bad), []
            give((batch, found))

        def leave_out(row: BadRow) -> None:
            bad.append(row)
            if len(bad) == BATCH_ROWS:
                hand_on(None)

        for batch in shuffled(sized(part.read(leave_out), sizes), seed):
            hand_on(batch)
        if bad:
            hand_on(None)

    return pulled(push, 1, threading.Event())


def feed_reader(number: int, desk: Any) -> Read:
    """Reads what the driver puts on the desk: a task of mteb's, a data set, a pipe.

    Args:
        number: The number that the driver's texts have as a part of the sources.
        desk: The job's desk.
    """

    def read() -> Iterator[pa.Table]:
        import ray

        block = first_block(number)
        while (batch := ray.get(desk.get.remote(block))) is not None:
            yield packed(Block(block, batch if batch.texts else None))
            block += 1

    return read


@contextmanager
def told(desk: Any, where: str = "") -> Iterator[None]:
    """Tell the desk what is wrong, before Ray wraps it into errors of its own.

    Args:
        desk: The job's desk.
        where: Said in front of it.
    """
    import ray

    try:
        yield
    except Exception as error:
        known = isinstance(error, EmbcacheError)
        kind = type(error).__name__ if known else "EngineError"
        message = str(error) if known else f"{type(error).__name__}: {error}"
        ray.get(desk.fail.remote(kind, f"{where}{message}"))
        raise
