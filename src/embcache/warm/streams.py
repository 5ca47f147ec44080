"""Streams of text batches: cut, joined, read ahead, and made of code that hands things over."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from embcache.engine.runs import text_sizes
from embcache.errors import ConfigError
from embcache.warm.batches import TextBatch

T = TypeVar("T")

_POLL_S = 0.1  # how soon a thread that waits sees that nobody wants more


@dataclass(frozen=True)
class Shard:
    """Every `of`-th text, beginning with the `number`-th: the shards of a stream add up to it.

    Attributes:
        number: Which shard it is, from 1 to `of`.
        of: How many shards there are.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard as a person writes it.

        Args:
            text: `number/of`: `3/8`, say.

        Raises:
            ConfigError: The text is not of this form, or `number` is not within 1 to `of`.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"shard {text!r}: give number/of, of 8 shards 1/8 to 8/8, say.")
        return cls(int(number), int(of))


def select(
    batches: Iterable[TextBatch], shard: Shard, limit: int | None = None
) -> Iterator[TextBatch]:
    """The texts of one shard, of the first texts of each source.

    Args:
        batches: The stream.
        shard: Which texts to take.
        limit: How many texts of each source are looked at, all shards together; None for all.

    Yields:
        Batches with the chosen texts; those that would be empty are left out.
    """
    read: dict[str, int] = {}
    for batch in batches:
        start = read.get(batch.source, 0)
        if limit is not None:
            batch = batch.cut(slice(max(limit - start, 0)))
        read[batch.source] = start + len(batch.texts)
        if shard.of > 1:
            batch = batch.cut(slice((shard.number - 1 - start) % shard.of, None, shard.of))
        if batch.texts:
            yield batch


def join_small(
    batches: Iterable[TextBatch], size: int, most_bytes: int = sys.maxsize
) -> Iterator[TextBatch]:
    """Join neighbouring batches of the same source and prompt.

    Args:
        batches: The stream.
        size: Number of texts from which a batch is not joined with the next.
        most_bytes: Bytes of its texts in memory, beyond which a batch is not joined either.

    Yields:
        Batches, all texts in the order of the stream.
    """
    held: TextBatch | None = None
    held_bytes = 0
    for batch in batches:
        more = int(text_sizes(batch.texts).sum())
        joined = None
        if held is not None and held_bytes + more <= most_bytes:
            joined = held.joined(batch)
        if held is not None and joined is None:
            yield held
        held_bytes = more if joined is None else held_bytes + more
        held = batch if joined is None else joined
        if len(held.texts) >= size:
            yield held
            held = None
    if held is not None:
        yield held


def read_ahead(items: Iterable[T], depth: int, stop: threading.Event) -> Iterator[T]:
    """The same items, made by another thread while the last one is worked on here.

    Args:
        items: The items; whatever making them raises is raised here.
        depth: How many finished items may wait.
        stop: Once it is set, the iterator ends, also while it waits.
    """

    def push(give: Callable[[T], None]) -> None:
        for item in items:
            give(item)

    yield from pulled(push, depth, stop)


class Abandoned(Exception):
    """Raised in the code that hands items over, once nobody takes them any more."""


def pulled(
    push: Callable[[Callable[[T], None]], None], depth: int, stop: threading.Event
) -> Iterator[T]:
    """Turn code that hands items over, one by one, into an iterator; it runs in a thread.

    Args:
        push: Gets a function that takes an item, waits for room, and raises `Abandoned` when the
            iterator is closed. What `push` raises is raised by the iterator.
        depth: How many items may wait.
        stop: Once it is set, the iterator ends, also while it waits.
    """
    waiting: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        raise Abandoned

    def run() -> None:
        try:
            push(lambda item: put((item,)))
            end: BaseException | None = None
        except BaseException as error:  # raised where the items are taken
            end = error
        try:
            put(end)
        except Abandoned:
            return

    # A daemon: where it waits for standard input, nothing can end it but the end of the process.
    thread = threading.Thread(target=run, name="embcache-reader", daemon=True)
    thread.start()
    try:
        while not stop.is_set():
            try:
                item = waiting.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        closed.set()
        thread.join(2)
