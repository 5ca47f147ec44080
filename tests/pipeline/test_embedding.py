from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import EngineError, NonFiniteError, RefusedTextsError, WrongOutputError
from embcache.engine.base import Embedded
from embcache.identity.identity import Identity
from embcache.pipeline.chunks import Chunk
from embcache.pipeline.embedding import Limit
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import PairRequest, TextRequest
from embcache.pipeline.stats import Watcher
from embcache.store import Database, Space
from tests.fakes import FakeEngine, FakeScoringEngine, are_canaries, fake_vector

IDENTITY = Identity("organization/name", "r", "float32")
TEXTS = [f"{'word ' * (i % 17)}text {i}" for i in range(200)]


class Frail(FakeEngine):
    """Fails as told, on its own texts alone.

    Attributes:
        fails_on: Texts at which it fails, each by itself.
        room: Texts times words of the longest one that it has memory for.
        always: Whether it fails on whatever it gets, after so many calls.
        dies: Whether a failure ends it.
        calls: How many texts each call got.
        failed: How many calls have failed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 32, **kwargs})
        self.fails_on: set[str] = set()
        self.room: float = np.inf
        self.always: int | None = None
        self.dies = False
        self.error: Callable[[], Exception] = lambda: RuntimeError("an index is out of range")
        self.calls: list[int] = []
        self.failed = 0

    def embed(self, prompts: Any) -> Embedded:
        self.start()
        if self.always is not None and len(self.calls) >= self.always:
            self.fail(self.error())
        if are_canaries(prompts):
            return super().embed(prompts)
        self.calls.append(len(prompts))
        at_once = prompts[: self.batch_size]
        if len(at_once) * max(len(text.split()) for text in at_once) > self.room:
            self.fail(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        if self.fails_on & set(prompts):
            self.fail(self.error())
        return super().embed(prompts)

    def fail(self, error: Exception) -> None:
        self.failed += 1
        if self.dies:
            self.close()
        raise error


@pytest.fixture
def engine() -> Frail:
    return Frail()


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Database(tmp_path, writable=True).space(IDENTITY, "name", "fake", store_text=True)


Make = Callable[..., Pipeline]


@pytest.fixture
def make(engine: Frail, space: Space) -> Make:
    def make_(**kwargs: Any) -> Pipeline:
        return Pipeline(**{"engine": engine, "identity": IDENTITY, "space": space, **kwargs})

    return make_


def run(pipeline: Pipeline, texts: list[str]) -> np.ndarray:
    return pipeline.encode(TextRequest(texts=texts, show_progress=False))[0]


def expected(texts: list[str]) -> np.ndarray:
    return np.stack([fake_vector(text) for text in texts])


def kept(make: Make) -> Callable[[list[str]], bool]:
    """Whether all of some texts are cached, with the right vectors."""

    def check(texts: list[str]) -> bool:
        found = run(make(engine=FakeEngine(), on_miss="raise"), texts)
        return bool((found == expected(texts)).all())

    return check


# Memory


@pytest.mark.parametrize("dies", [False, True])
def test_a_chunk_that_runs_out_of_memory_is_tried_in_halves(
    make: Make, engine: Frail, dies: bool
) -> None:
    engine.room, engine.dies = 4 * 18, dies
    pipeline = make()
    assert (run(pipeline, TEXTS) == expected(TEXTS)).all()
    assert engine.failed == 3  # at 32, 16 and 8 of 18 words; 4 fit
    assert engine.starts == (4 if dies else 1)
    assert kept(make)(TEXTS)


def test_what_was_too_much_once_is_not_tried_again(make: Make, engine: Frail) -> None:
    engine.room = 4 * 18
    pipeline = make()
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 40 * (18 + 16)
    run(pipeline, TEXTS)
    failed, calls = engine.failed, len(engine.calls)
    more = [f"{text} more" for text in TEXTS]
    assert (run(pipeline, more) == expected(more)).all()
    assert engine.failed == failed == 3
    assert len(engine.calls) - calls > 200 / 36  # and shorter texts, more at once
    assert max(engine.calls[calls:]) > min(engine.calls[calls:])


def test_pieces_of_a_chunk_are_one_commit(make: Make, engine: Frail, space: Space) -> None:
    engine.room = 4 * 18
    pipeline = make()
    run(pipeline, TEXTS)
    before = space.refresh()
    run(pipeline, [f"{text} more" for text in TEXTS])
    assert before.reader is not None and space.snapshot.reader is not None
    assert space.snapshot.reader.dataset.version - before.reader.dataset.version <= 2


def test_memory_that_does_not_suffice_for_one_text(make: Make, engine: Frail) -> None:
    """It is given up, and the error says what to lower; what was computed before is kept."""
    engine.room = 10
    engine.memory_advice = "Lower max_num_seqs."  # type: ignore[attr-defined]
    texts = ["one two", "three", "word " * 30 + "long"]
    pipeline = make()
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 1
    with pytest.raises(
        EngineError,
        match=r"The engine \(fake 1\.0\) ran out of memory on 1 texts \(the longest has about 31 "
        r"tokens, all together 31\), .* row 2, 'word .*, about 31 tokens: RuntimeError: CUDA out "
        r"of memory.* Lower max_num_seqs\. What was encoded before is kept",
    ) as error:
        run(pipeline, [*texts])
    assert "Tried to allocate" in str(error.value.__cause__)
    assert engine.failed == 1
    pipeline.chunker.tokens = 10_000
    with pytest.raises(EngineError, match=r"on 3 texts \(the longest has about 31 tokens, all tog"):
        run(pipeline, texts)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
                     "allocate memory: you tried to allocate 8 bytes. Error code 12"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
        OSError(12, "Cannot allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})("HIP"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_wordings_of_memory(make: Make, engine: Frail, error: Exception, wrapped: bool) -> None:
    def fail() -> Exception:
        if not wrapped:
            return error
        outer = EngineError(f"vLLM failed: {error}")
        outer.__cause__ = error
        return outer

    engine.error, engine.fails_on = fail, {"b"}
    with pytest.raises(EngineError, match=r"ran out of memory on 2 texts .* row 1, 'b', about 1 t"):
        run(make(), ["a", "b"])
    assert kept(make)(["a"])


def test_a_message_that_quotes_a_text_about_memory_is_none_of_memory(
    make: Make, engine: Frail
) -> None:
    engine.error, engine.fails_on = lambda: ValueError("bad text: 'out of memory'"), {"b"}
    with pytest.raises(RefusedTextsError, match=r"row 1, 'b': makes the engine fail.*ValueError"):
        run(make(), ["a", "b", "c"])


def test_an_error_that_is_over_holds_no_memory(make: Make, engine: Frail) -> None:
    """Its frames would keep a step's tensors while the engine starts again."""

    class Tensor:
        pass

    alive: list[Any] = []

    def step() -> Exception:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    start, seen = engine.start, []

    def starting() -> None:
        seen.append([ref() for ref in alive])
        start()

    engine.start = starting  # type: ignore[method-assign]
    engine.error, engine.fails_on, engine.dies = step, {"b"}, True
    with pytest.raises(EngineError, match="ran out of memory"):
        run(make(), ["a", "b"])
    assert alive and all(tensor is None for each in seen for tensor in each)


# One text


@pytest.mark.parametrize(
    ("bad", "dies"),
    [([0], False), ([199], False), ([0], True), ([77], True), ([16, 33, 120], False),
     ([*range(17)], False)],
)  # fmt: skip
def test_a_text_at_which_the_engine_fails_holds_up_no_other(
    make: Make, engine: Frail, dies: bool, bad: list[int]
) -> None:
    engine.fails_on, engine.dies = {TEXTS[row] for row in bad}, dies
    with pytest.raises(
        RefusedTextsError,
        match=rf"{len(bad)} of 200 texts cannot be encoded\. row {bad[0]}, .*: makes the engine "
        r"fail, which others do not \(RuntimeError: an index is out of range\)\. Drop or",
    ) as error:
        run(make(), TEXTS)
    assert error.value.rows == bad
    assert engine.failed < 9 * len(bad) and engine.starts <= 6
    assert kept(make)([text for row, text in enumerate(TEXTS) if row not in bad])


def test_a_pair_at_which_the_engine_fails(make: Make) -> None:
    class FrailScoring(FakeScoringEngine):
        def embed(self, prompts: Any) -> Embedded:
            if "q\0b" in prompts:
                raise TypeError("no b")
            return super().embed(prompts)

    engine = FrailScoring()
    request = PairRequest(queries=["q"] * 4, documents=["a", "b", "c", "b"], show_progress=False)
    with pytest.raises(RefusedTextsError, match=r"2 of 4 pairs .*row 1, \('q', 'b'\), row 3") as e:
        make(engine=engine).encode(request)
    assert e.value.rows == [1, 3] and {"q\0a", "q\0c"} <= set(engine.encoded)


def test_the_only_text_is_told_from_the_engine_by_another_one(make: Make, engine: Frail) -> None:
    """One of embcache's own, where it may send such."""
    engine.fails_on = {"bad"}
    with pytest.raises(RefusedTextsError, match=r"1 of 1 texts cannot be encoded\. row 0, 'bad'"):
        run(make(), ["bad"])
    with pytest.raises(RuntimeError, match="an index is out of range"):
        run(make(canaries="never"), ["bad"])
    engine.error = lambda: EngineError("vLLM failed on a chunk")
    with pytest.raises(EngineError, match="vLLM failed on a chunk"):
        run(make(space=None), ["bad"])


def test_filling_leaves_it_out(make: Make, engine: Frail) -> None:
    engine.fails_on = {TEXTS[7]}
    told: dict[int, str] = {}
    texts = [*TEXTS, TEXTS[7]]
    request = TextRequest(texts=texts, show_progress=False)
    done = make().fill(
        request, request.keys(IDENTITY.to_bytes()), watcher=Watcher(), refuse=told.update
    )
    assert (done.encoded, done.refused) == (199, 1) and [*told] == [7, 200]


def test_a_report_that_raises_is_no_failure_of_the_engine(make: Make, engine: Frail) -> None:
    engine.fails_on, engine.poison = {TEXTS[7]}, {TEXTS[150]: np.nan}
    told: list[int] = []

    def strict(refused: Mapping[int, str]) -> None:
        told.extend(refused)
        raise OSError("the log is full")

    request = TextRequest(texts=TEXTS, show_progress=False)
    with pytest.raises(OSError, match="the log is full"):
        make().fill(request, request.keys(IDENTITY.to_bytes()), watcher=Watcher(), refuse=strict)
    assert len(told) == 1


def test_where_nothing_is_kept_it_ends_the_run(make: Make, engine: Frail) -> None:
    engine.fails_on = {"b"}
    with pytest.raises(RefusedTextsError, match=r"'b': makes .*Nothing is written in this run"):
        run(make(write=False), ["a", "b", "c"])


# An engine that fails at whatever it gets


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_engine_that_fails_on_everything_is_given_up_soon(
    make: Make, engine: Frail, dies: bool, after: int
) -> None:
    """With what it raised itself; what was encoded before is kept."""
    engine.always, engine.dies = after, dies
    engine.error = lambda: ConnectionError("the endpoint is down")
    pipeline = make(canaries="never")
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 40 * 20
    with pytest.raises(ConnectionError, match="the endpoint is down"):
        run(pipeline, TEXTS)
    assert engine.failed <= 3 and engine.starts <= 3
    engine.always = None
    encoded = len(engine.encoded)
    run(pipeline, TEXTS)
    assert len(engine.encoded) == 200 and (encoded > 0) == (after > 0)


def test_an_engine_that_dies_once(make: Make, engine: Frail) -> None:
    """Killed, say: it is started again, and the chunk goes on; nobody need know."""
    killed: list[int] = []
    embed = engine.embed

    def embed_once(prompts: Any) -> Embedded:
        if not are_canaries(prompts) and len(engine.calls) == 1 and not killed:
            killed.append(1)
            engine.close()
            raise EngineError("vLLM failed on a chunk") from type(
                "EngineDeadError", (Exception,), {}
            )("EngineCore encountered an issue")
        return embed(prompts)

    engine.embed = embed_once  # type: ignore[method-assign]
    pipeline = make()
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 40 * 20
    assert (run(pipeline, TEXTS) == expected(TEXTS)).all()
    assert killed and engine.starts == 2 and pipeline._limit == Limit(None, 1)
    assert engine.canaries == 2  # compared after each start


def test_an_engine_that_does_not_start_again(make: Make, engine: Frail) -> None:
    engine.fails_on, engine.dies = {TEXTS[60]}, True
    start = engine.start

    def starting() -> None:
        if engine.failed:
            raise EngineError("No available memory for the cache blocks.")
        start()

    engine.start = starting  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"an index .* Started again after that: No available"):
        run(make(), TEXTS)


def test_a_chunk_of_bad_texts_is_given_up(make: Make, engine: Frail) -> None:
    engine.fails_on = {text for text in TEXTS if len(text.split()) > 3}
    with pytest.raises(
        EngineError,
        match=r"failed 101 times on \d+ texts \(the longest has about 18 .* 0 times so that",
    ):
        run(make(), TEXTS)
    assert engine.failed == 101
    dying = Frail()
    dying.fails_on, dying.dies = engine.fails_on, True
    with pytest.raises(EngineError, match=r"failed 13 times .* 13 times so that it had to be"):
        run(make(engine=dying), TEXTS)
    assert dying.starts == 13


def test_wrong_outputs_are_not_tried_again(make: Make, engine: Frail) -> None:
    """Of one text at a time, the same engine would seem to be right."""
    calls: list[int] = []

    def embed(prompts: Any) -> Embedded:
        calls.append(len(prompts))
        return Embedded(np.zeros((1, 8), np.float32))

    engine.embed = embed  # type: ignore[method-assign]
    with pytest.raises(WrongOutputError, match=r"shape \(1, 8\) for 2 texts"):
        run(make(canaries="never"), ["a", "b"])
    assert calls == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_ctrl_c_is_no_failure(make: Make, engine: Frail, error: BaseException) -> None:
    embed = engine.embed

    def interrupted(prompts: Any) -> Embedded:
        if len(engine.calls) == 2:
            raise error
        return embed(prompts)

    engine.embed, engine.room = interrupted, 100  # type: ignore[method-assign]
    pipeline = make()
    pipeline._limit.tokens = 100
    with pytest.raises(type(error)):
        run(pipeline, TEXTS)
    assert len(engine.calls) == 2 and len(engine.encoded) > 0
    assert kept(make)(engine.encoded)  # also of the pieces of the chunk in flight


def test_an_engine_that_fails_after_a_stop(make: Make, engine: Frail) -> None:
    """Ctrl-C reaches the engine's processes, too: their end is no error then."""
    request = TextRequest(texts=TEXTS, show_progress=False)
    engine.always = 1
    stopped = iter([False, False, False])
    pipeline = make()
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 40 * 20
    done = pipeline.fill(
        request,
        request.keys(IDENTITY.to_bytes()),
        watcher=Watcher(),
        refuse={}.update,
        stop=lambda: next(stopped, True),
    )
    assert 0 < done.encoded < 200 and engine.failed == 1


# NaN


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_few_texts_without_finite_vectors_are_refused(
    make: Make, engine: Frail, value: float
) -> None:
    engine.poison, engine.actual_dtype = {TEXTS[20]: value, TEXTS[3]: value}, "float16"
    with pytest.raises(
        RefusedTextsError,
        match=r"2 of 200 .* row 3, .*, row 20, .*: gets NaN or infinity from the engine\. "
        r"dtype='float16' cannot hold .* Use dtype='bfloat16' or dtype='float32'\. All others are",
    ) as error:
        run(make(), TEXTS)
    assert error.value.rows == [3, 20] and engine.failed == 0
    assert kept(make)([text for row, text in enumerate(TEXTS) if row not in (3, 20)])


def test_many_are_the_models_fault(make: Make, engine: Frail, space: Space) -> None:
    engine.poison = dict.fromkeys(TEXTS[:150], np.nan)
    with pytest.raises(NonFiniteError, match="NaN or infinity for 150 of 200 texts"):
        run(make(), TEXTS)
    assert len(space.refresh()) == 0


def test_limits_of_one_call() -> None:
    lengths = np.array([9, 8, 4, 4, 2, 1, 1, 0, 0])
    chunk = Chunk(np.arange(9), list("abcdefghi"), lengths)
    limit = Limit()
    assert limit.pieces(chunk) == [chunk]
    limit.lower([chunk.cut(slice(2, 4))])
    assert limit.tokens == 8
    pieces = [piece.rows.tolist() for piece in limit.pieces(chunk)]
    assert pieces == [[0], [1], [2, 3], [4, 5, 6, 7], [8]]
    limit.lower([chunk])
    assert limit.tokens == 8  # never up
