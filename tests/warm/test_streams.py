from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache import ConfigError
from embcache.warm.sources import TextBatch
from embcache.warm.streams import Abandoned, Shard, join_small, pulled, read_ahead, select

batches = st.lists(
    st.builds(
        TextBatch,
        st.lists(st.text("ab", max_size=2), max_size=7),
        st.sampled_from(["one", "two"]),
        prompt=st.sampled_from([None, "p"]),
    ),
    max_size=8,
)


@st.composite
def numbered(draw: st.DrawFn) -> list[TextBatch]:
    """Batches of two files, some of which say where their texts are: the text is the number."""
    made = []
    for batch in draw(batches):
        numbers = sorted(draw(st.sets(st.integers(1, 99), max_size=5)))
        known = numbers if draw(st.booleans()) else ()
        made.append(replace(batch, texts=[str(n) for n in numbers], numbers=known, unit="line"))
    return made


@given(numbered(), st.integers(1, 4), st.integers(0, 20), st.integers(1, 10))
def test_a_text_keeps_its_number(stream: list[TextBatch], of: int, limit: int, size: int) -> None:
    for shard in range(1, of + 1):
        for batch in join_small(select(stream, Shard(shard, of), limit), size):
            for i, text in enumerate(batch.texts):
                known = f"{batch.source}, line {text}"
                assert batch.place(i) == (known if len(batch.numbers) else batch.source)


def test_the_place_of_a_text() -> None:
    batch = TextBatch(["a", "b"], "x.jsonl", numbers=[7, 50_001], unit="line")
    assert batch.place(1) == "x.jsonl, line 50001"
    assert batch.cut(slice(1, None)).place(0) == "x.jsonl, line 50001"
    assert TextBatch(["a"], "-", numbers=[3]).place(0) == "standard input, row 3"
    assert TextBatch(["a"], "NFCorpus").place(0) == "NFCorpus"


def texts(stream: Iterator[TextBatch]) -> list[tuple[str, str | None, str]]:
    return [(batch.source, batch.prompt, text) for batch in stream for text in batch.texts]


@given(batches, st.integers(1, 5))
def test_shards_add_up_to_the_stream(stream: list[TextBatch], of: int) -> None:
    parts = [texts(select(stream, Shard(n, of))) for n in range(1, of + 1)]
    together = [row for part in parts for row in part]
    assert sorted(together, key=repr) == sorted(texts(iter(stream)), key=repr)
    for source in ("one", "two"):  # and are about as large as each other
        sizes = [sum(1 for name, _, _ in part if name == source) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@given(batches, st.integers(0, 9))
def test_a_limit_is_one_of_each_source(stream: list[TextBatch], limit: int) -> None:
    got = texts(select(stream, Shard(), limit))
    for source in ("one", "two"):
        everything = [row for row in texts(iter(stream)) if row[0] == source]
        assert [row for row in got if row[0] == source] == everything[:limit]


@given(batches, st.integers(1, 10))
def test_small_batches_are_joined_and_nothing_is_lost(stream: list[TextBatch], size: int) -> None:
    joined = list(join_small(stream, size))
    assert texts(iter(joined)) == texts(iter(stream))
    for one, two in itertools.pairwise(joined):
        same = (one.source, one.prompt) == (two.source, two.prompt)
        assert not same or len(one.texts) >= size


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "3/", "-1/2", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="give number/of"):
        Shard.parse(text)


def test_a_shard() -> None:
    assert Shard.parse("3/8") == Shard(3, 8)


def test_reading_ahead_keeps_the_order_and_the_errors() -> None:
    def items() -> Iterator[int]:
        yield from range(100)
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(items(), 3, threading.Event()):
            got.append(item)
    assert got == list(range(100))


def test_reading_ahead_is_bounded() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(1000):
            made.append(item)
            yield item

    stream = read_ahead(items(), 2, threading.Event())
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    stream.close()  # type: ignore[attr-defined]


def test_a_stop_ends_it_while_it_waits() -> None:
    stop = threading.Event()
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait(60)

    stream = read_ahead(items(), 2, stop)
    assert next(stream) == 1
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    assert list(stream) == []
    never.set()
    assert time.monotonic() - began < 30  # half of what the source would take


def test_what_nobody_wants_is_not_made() -> None:
    ended = threading.Event()

    def push(give: object) -> None:
        try:
            for number in range(10**9):
                give(number)  # type: ignore[operator]
        except Abandoned:
            ended.set()
            raise

    stream = pulled(push, 1, threading.Event())
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert ended.wait(3)
