from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from embcache.pipeline import chunks
from embcache.pipeline.chunks import Chunker
from embcache.pipeline.request import PairRequest, Request, TextRequest
from tests.fakes import FakeEngine, FakeScoringEngine

TEXTS = [f"{'word ' * (i % 17)}{i % 60}" for i in range(100)]


def no_refusal(refused: Mapping[int, str]) -> None:
    raise AssertionError(refused)


def cut(chunker: Chunker, texts: list[str], rows: list[int] | None = None) -> list[list[int]]:
    """The rows of each chunk."""
    request = TextRequest(texts=texts, prompt="p: ", show_progress=False)
    missing = np.arange(len(texts)) if rows is None else np.array(rows)
    found = []
    for chunk in chunker.cut(request, missing, no_refusal):
        assert chunk.prompts == ["p: " + texts[row] for row in chunk.rows]
        found.append(chunk.rows.tolist())
    return found


def test_longest_first_in_bounded_chunks() -> None:
    found = cut(Chunker(FakeEngine()), TEXTS)
    lengths = [len(TEXTS[row].split()) for chunk in found for row in chunk]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(row for chunk in found for row in chunk) == [*range(100)]
    assert len(found) == 2 and len(found[1]) > len(found[0])  # growing while they are quick


def test_only_what_is_missing() -> None:
    assert cut(Chunker(FakeEngine()), ["a", "b c", "d", "e f g"], [3, 0, 1]) == [[3, 1, 0]]
    assert cut(Chunker(FakeEngine()), [], []) == []


def test_slow_chunks_become_smaller() -> None:
    found = cut(
        Chunker(FakeEngine(batch_size=1), (-2.0, -1.0)), [f"{i}" for i in range(40)]
    )  # 2 tokens each
    assert [len(chunk) for chunk in found][:4] == [14, 7, 3, 1]


def test_the_time_of_a_chunk_is_until_the_next() -> None:
    chunker = Chunker(FakeEngine(batch_size=1), (0.0, 0.02))
    before = chunker.tokens
    pieces = chunker.cut(TextRequest(texts=TEXTS), np.arange(100), no_refusal)
    next(pieces)
    time.sleep(0.03)
    next(pieces)
    assert chunker.tokens == before // 2
    pieces.close()


def test_a_size_that_does_not_adapt() -> None:
    chunker = Chunker(FakeEngine(batch_size=1))
    chunker.adapts, chunker.tokens = False, 18 * 7
    assert [len(c) for c in cut(chunker, [f"{i}" for i in range(20)])] == [7, 7, 6]


def test_a_text_longer_than_a_chunk_is_a_chunk() -> None:
    chunker = Chunker(FakeEngine())
    chunker.adapts, chunker.tokens = False, 1
    assert [len(c) for c in cut(chunker, [f"{i} " * 50 for i in range(3)])] == [1, 1, 1]


def test_short_texts_do_not_make_the_chunks_of_long_ones_large() -> None:
    chunker = Chunker(FakeEngine(batch_size=1))
    cut(chunker, [f"{i}" for i in range(20)])
    assert len(cut(chunker, [f"{i} " * 200 for i in range(20)])[0]) == 2  # 512 tokens


def test_windows_bound_what_is_tokenized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "WINDOW_TEXTS", 10)
    engine = FakeEngine()
    seen: list[int] = []
    prepare = engine.prepare
    monkeypatch.setattr(
        engine, "prepare", lambda texts: (seen.append(len(texts)), prepare(texts))[1]
    )
    assert sum(map(len, cut(Chunker(engine), TEXTS))) == 100
    assert max(seen) == 10


@pytest.mark.parametrize("in_order", [False, True])
def test_refused_items_are_named_by_their_rows_and_are_in_no_chunk(
    monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    monkeypatch.setattr(chunks, "WINDOW_TEXTS", 4)
    engine: FakeEngine = FakeScoringEngine() if in_order else FakeEngine()
    texts = ["a", "bad 1", "b", "bad 2", "bad 3", *("bad 4",) * 3, "c"]
    request: Request = TextRequest(texts=texts)
    engine.refuse = {text for text in texts if text.startswith("bad")}
    if in_order:
        request = PairRequest(queries=texts, documents=["d"] * len(texts))
        engine.refuse = {f"{text}\0d" for text in engine.refuse}
    told: list[dict[int, str]] = []
    found = [
        chunk.rows.tolist()
        for chunk in Chunker(engine).cut(
            request, np.arange(9)[1:], lambda refused: told.append(dict(refused))
        )
    ]
    assert found == [[2], [8]]
    assert [[*window] for window in told] == [[1, 3, 4], [5, 6, 7]]
    assert {reason for window in told for reason in window.values()} == {"is refused by the fake"}


@pytest.mark.parametrize("pairs", [False, True])
def test_windows_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    monkeypatch.setattr(chunks, "WINDOW_BYTES", 10_000)
    texts = [f"{i} " * (1 if i % 3 else 500) for i in range(60)]
    request: Request = TextRequest(texts=texts, prompt="p: ")
    engine: FakeEngine = FakeEngine()
    if pairs:
        request = PairRequest(queries=["q"] * 60, documents=texts)
        engine = FakeScoringEngine()
    seen: list[int] = []
    prepare = engine.prepare

    def prepared(items: Any) -> Any:
        seen.append(sum(len("".join(item)) for item in items))
        return prepare(items)

    monkeypatch.setattr(engine, "prepare", prepared)
    found = [row for c in Chunker(engine).cut(request, np.arange(60), no_refusal) for row in c.rows]
    assert sorted(found) == [*range(60)] and max(seen) < 10_000 and len(seen) > 3


def test_a_text_larger_than_a_window_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "WINDOW_BYTES", 10)
    assert cut(Chunker(FakeEngine()), ["a" * 50, "b", "c" * 50]) == [[0], [1], [2]]


def test_chunks_are_bounded_by_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first one the width is not known, and the engine's batch bounds it."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 10 * 4 * 768)
    chunker = Chunker(FakeEngine())
    chunker.width = 768
    assert {len(chunk) for chunk in cut(chunker, TEXTS)} == {10}
    chunker.width = 4096 * 100
    assert {len(chunk) for chunk in cut(chunker, TEXTS[:5])} == {1}
