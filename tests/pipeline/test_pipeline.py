from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import (
    CacheError,
    ChangedModelError,
    DamagedSpaceError,
    EngineError,
    InputError,
    MissingTextsError,
    NonFiniteError,
    RefusedTextsError,
)
from embcache.engine.base import Embedded, Prepared
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys, text_keys
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import PairRequest, TextRequest
from embcache.pipeline.result import Truncation
from embcache.pipeline.stats import Watcher
from embcache.store import Database, Rows, Space, SpaceSnapshot
from embcache.tools.compact import compact_space
from tests.fakes import FakeEngine, FakeScoringEngine, fake_vector
from tests.spaces import folder, make_rows, no_hard_links, refused
from tests.store.test_damage import data_files, flip_bit

IDENTITY = Identity("organization/name", "r", "float32")
Make = Callable[..., Pipeline]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Database(tmp_path, writable=True).space(IDENTITY, "name", "fake", store_text=True)


@pytest.fixture
def make(engine: FakeEngine, space: Space) -> Make:
    def make_(**kwargs: Any) -> Pipeline:
        kwargs = {"engine": engine, "identity": IDENTITY, "space": space, **kwargs}
        return Pipeline(**kwargs)

    return make_


def run(pipeline_: Pipeline, texts: list[str], prompt: str = "") -> np.ndarray:
    return pipeline_.encode(TextRequest(texts=texts, prompt=prompt, show_progress=False))[0]


def expected(texts: list[str], prompt: str = "") -> np.ndarray:
    return np.stack([fake_vector(prompt + text) for text in texts])


TEXTS = [f"{'word ' * (i % 17)}{i % 60}" for i in range(100)]  # 60 of them distinct... or more


def no_refusal(refused: Any) -> None:
    raise AssertionError(f"{refused} are refused")


@pytest.mark.parametrize("cached", [True, False])
def test_order_and_duplicates_are_the_callers(make: Make, engine: FakeEngine, cached: bool) -> None:
    texts = [*TEXTS, *TEXTS[::-1]]
    pipeline_ = make() if cached else make(space=None)
    assert (run(pipeline_, texts) == expected(texts)).all()
    assert sorted(engine.encoded) == sorted(set(texts))
    again = run(pipeline_, texts)
    assert again.tobytes() == expected(texts).tobytes()
    assert len(engine.encoded) == len(set(texts)) * (1 if cached else 2)


def test_stats(make: Make) -> None:
    pipeline_ = make()
    _, cold = pipeline_.encode(TextRequest(texts=["a", "b", "a"], show_progress=False))
    assert (cold.texts, cold.unique, cold.hits, cold.encoded) == (3, 2, 0, 2)
    _, mixed = pipeline_.encode(TextRequest(texts=["b", "c", "c"], show_progress=False))
    assert (mixed.texts, mixed.unique, mixed.hits, mixed.encoded) == (3, 2, 1, 1)
    assert mixed.seconds > 0
    assert str(cold + mixed).startswith("6 texts, 4 unique, 1 hits, 3 encoded, ")


def test_the_engine_starts_at_the_first_miss(make: Make, engine: FakeEngine) -> None:
    pipeline_ = make()
    assert run(pipeline_, []).shape == (0, 0) and engine.starts == 0
    run(pipeline_, ["a"])
    assert engine.starts == 1
    fresh = FakeEngine()
    assert run(make(engine=fresh), ["a"]).shape == (1, 8)
    assert run(make(engine=fresh), []).shape == (0, 8) and fresh.starts == 0


def test_prompts_are_part_of_the_key(make: Make, engine: FakeEngine) -> None:
    pipeline_ = make()
    query, document = (run(pipeline_, ["text"], p) for p in ("query: ", "passage: "))
    assert (query != document).any()
    assert engine.encoded == ["query: text", "passage: text"]
    # The same input to the engine by another split of prompt and text is another key.
    run(pipeline_, ["query: text"])
    assert engine.encoded[2:] == ["query: text"]


def test_on_miss_raise_never_starts_the_engine(
    make: Make, engine: FakeEngine, tmp_path: Path
) -> None:
    run(make(), ["a", "b"])
    elsewhere = Database(tmp_path / "empty", writable=False).space(
        IDENTITY, "name", "fake", store_text=True
    )
    fresh = FakeEngine()
    asking = make(engine=fresh, on_miss="raise")
    assert (run(asking, ["b", "a"]) == expected(["b", "a"])).all()
    with pytest.raises(MissingTextsError, match=r"2 of 4 texts are not cached .* 'c', 'd'") as e:
        run(asking, ["a", "c", "d", "c"])
    assert e.value.missing == 2 and fresh.starts == 0
    with pytest.raises(MissingTextsError, match=r"1 of 1 texts are not cached in /"):
        run(make(space=elsewhere, on_miss="raise"), ["a"])
    with pytest.raises(MissingTextsError, match=r"there is no cache \(cache_path=None\)"):
        run(make(space=None, on_miss="raise"), ["a"])


def test_without_writing(make: Make, space: Space) -> None:
    assert (run(make(write=False), TEXTS) == expected(TEXTS)).all()
    assert not folder(space).exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_never_written(make: Make, engine: FakeEngine, space: Space, value: float) -> None:
    engine.actual_dtype = "float16"
    engine.poison = {"bad": value}
    texts = ["x " * 9 + str(i) for i in range(8)] + ["good", "bad"]  # "bad" is in the second chunk
    pipeline_ = make()
    pipeline_.chunker.tokens = 8 * (9 + 1 + 16)
    with pytest.raises(
        NonFiniteError, match=r"1 of 2 texts, the first in row 9: 'bad'\. dtype='float16'.*bfloat16"
    ):
        run(pipeline_, texts)
    assert len(space.refresh()) == 8
    assert (run(make(engine=FakeEngine()), texts[:8]) == expected(texts[:8])).all()


def test_one_refused_text_holds_up_no_other(
    make: Make, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are encoded and committed, those of later windows too; then its rows are named."""
    monkeypatch.setattr("embcache.pipeline.chunks.WINDOW_TEXTS", 10)
    run(make(), ["cached 1", "cached 2"], "p: ")
    engine.refuse = {"p: bad", "p: "}
    texts = ["cached 1", "a", "bad", "", *TEXTS, "bad", "cached 2"]
    with pytest.raises(
        RefusedTextsError,
        match=r"3 of 106 texts cannot be encoded\. row 2, 'bad', row 3, '', row 104, 'bad': "
        r"is refused by the fake\. All others are encoded "
        r"and in /.*/name--float32--\w+\.lance: the next run finds them there\.",
    ) as error:
        run(make(), texts, "p: ")
    assert error.value.rows == [2, 3, 104]
    good = [text for text in texts if text not in ("", "bad")]
    fresh = FakeEngine()
    assert (run(make(engine=fresh), good, "p: ") == expected(good, "p: ")).all()
    assert fresh.starts == 0


def test_many_refused_texts_are_counted_and_the_first_named(make: Make, engine: FakeEngine) -> None:
    engine.refuse = {f"bad {i}" for i in range(40)}
    texts = [*sorted(engine.refuse), "good"]
    with pytest.raises(
        RefusedTextsError,
        match=r"40 of 41 texts .* row 4, .*: is refused .*; and 35 more \(error\.rows has them",
    ) as error:
        run(make(), texts)
    assert error.value.rows == list(range(40)) and engine.encoded == ["good"]


def test_all_texts_refused(make: Make, engine: FakeEngine, space: Space) -> None:
    engine.refuse = {""}
    with pytest.raises(
        InputError, match=r"2 of 2 texts cannot be encoded\. row 0, '', row 1, '': is"
    ):
        run(make(), ["", ""])
    assert engine.chunks == [] and len(space.refresh()) == 0


@pytest.mark.parametrize("kwargs", [{"write": False}, {"space": None}])
def test_where_nothing_is_kept_a_refused_text_ends_it_at_once(
    make: Make, engine: FakeEngine, kwargs: dict[str, Any]
) -> None:
    """Rather than after hours whose work would be lost."""
    engine.refuse = {"bad"}
    with pytest.raises(
        RefusedTextsError, match=r"row 100, 'bad': .*\. Nothing is written in this run, so it ended"
    ):
        run(make(**kwargs), [*TEXTS, "bad"])
    assert engine.chunks == []


def test_a_refused_pair_is_named(make: Make) -> None:
    engine = FakeScoringEngine()
    engine.refuse = {"q\0"}
    request = PairRequest(queries=["q"] * 3, documents=["a", "", "b"], show_progress=False)
    with pytest.raises(
        RefusedTextsError, match=r"1 of 3 pairs cannot be encoded\. row 1, \('q', ''\): is refused"
    ):
        make(engine=engine).encode(request)
    assert engine.encoded == ["q\0a", "q\0b"]


def test_filling_leaves_refused_texts_out(
    make: Make, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embcache.pipeline.chunks.WINDOW_TEXTS", 10)
    engine.refuse = {"bad", ""}
    request = TextRequest(texts=["bad", *TEXTS, "", "bad"], show_progress=False)
    told: dict[int, str] = {}
    for encoded in (len(set(TEXTS)), 0):
        told.clear()
        pipeline_ = make()
        keys = request.keys(IDENTITY.to_bytes())
        done = pipeline_.fill(request, keys, watcher=Watcher(), refuse=told.update)
        assert (done.encoded, done.refused) == (encoded, 2)
        assert done.hits + done.encoded + done.refused == done.unique
        assert told == dict.fromkeys([0, 101, 102], "is refused by the fake")


def test_filling_what_is_claimed(make: Make, engine: FakeEngine, space: Space) -> None:
    """What somebody else encodes is neither encoded nor waited for."""
    run(make(), ["cached"])
    request = TextRequest(texts=["cached", *"abcdab"], show_progress=False)
    keys = request.keys(IDENTITY.to_bytes())
    asked: list[Keys] = []

    def claim(missing: Keys) -> np.ndarray:
        asked.append(missing)
        return np.isin(missing[:, 0], keys[[1, 3], 0])  # a and c

    pipeline_ = make()
    pipeline_.refresh()
    before = len(engine.encoded)
    done = pipeline_.fill(request, keys, watcher=Watcher(), refuse=no_refusal, claim=claim)
    assert {tuple(key) for key in asked[0].tolist()} == {tuple(k) for k in keys[1:5].tolist()}
    assert len(asked) == 1 and len(asked[0]) == 4  # duplicates are asked for once
    assert sorted(engine.encoded[before:]) == ["a", "c"]
    assert (done.texts, done.unique, done.hits, done.encoded) == (7, 5, 3, 2)
    assert len(space.refresh()) == 3


def test_nothing_is_claimed_where_nothing_is_missing(make: Make, engine: FakeEngine) -> None:
    run(make(), ["a"])
    request = TextRequest(texts=["a", "a"], show_progress=False)
    keys = request.keys(IDENTITY.to_bytes())
    starts = engine.starts
    for texts_claimed in (0, 1):

        def claim(missing: Keys, claimed: int = texts_claimed) -> np.ndarray:
            assert claimed, "it was asked for nothing"
            return np.zeros(len(missing), bool)

        pipeline_ = make()
        pipeline_.refresh()
        if texts_claimed:
            request = TextRequest(texts=["b"], show_progress=False)
            keys = request.keys(IDENTITY.to_bytes())
            engine.close()
        done = pipeline_.fill(request, keys, watcher=Watcher(), refuse=no_refusal, claim=claim)
        assert (done.encoded, done.hits) == (0, 1)
    assert engine.starts == starts


@pytest.mark.parametrize("error", [EngineError("out of memory"), KeyboardInterrupt("stop")])
def test_what_was_encoded_before_a_failure_is_kept(
    make: Make, engine: FakeEngine, space: Space, error: BaseException
) -> None:
    engine.fail_on_chunk, engine.fail_after = error, 2
    pipeline_ = make()
    pipeline_.chunker.tokens = 300
    with pytest.raises(type(error), match=str(error)):
        run(pipeline_, TEXTS)
    assert engine.encoded
    fresh = FakeEngine()
    assert (run(make(engine=fresh), TEXTS) == expected(TEXTS)).all()
    assert len(fresh.encoded) + len(engine.encoded) == len(set(TEXTS))


def test_a_compaction_between_look_up_and_read(
    make: Make, engine: FakeEngine, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that were looked up in are gone; their rows are not."""
    pipeline_ = make()
    for text in TEXTS[:4]:
        run(pipeline_, [text])
    find, calls = SpaceSnapshot.find, []

    def find_and_compact(self: SpaceSnapshot, keys: Any) -> Any:
        found = find(self, keys)
        if not calls:
            compact_space(space, older_than=timedelta(0))
        calls.append(1)
        return found

    monkeypatch.setattr(SpaceSnapshot, "find", find_and_compact)
    assert (run(pipeline_, TEXTS[:4]) == expected(TEXTS[:4])).all()
    assert len(calls) == 2 and len(engine.encoded) == 4


def test_a_damaged_file_is_no_compaction(make: Make, space: Space) -> None:
    run(make(), TEXTS)
    for path in data_files(space):
        path.unlink()
    with pytest.raises(DamagedSpaceError, match="Reading vectors from"):
        run(make(on_miss="raise", write=False), TEXTS)


def test_a_failing_write_is_heard_of(
    make: Make, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(rows: Any) -> None:
        raise CacheError("No space left on device")

    monkeypatch.setattr(space, "add", full)
    with pytest.raises(CacheError, match="No space left on device"):
        run(make(), TEXTS)


def test_corrupt_rows_are_dropped_and_encoded_again(
    make: Make, engine: FakeEngine, space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), TEXTS)
    for text in (TEXTS[3], TEXTS[40]):
        damage(space, text)
    fresh = FakeEngine()
    with caplog.at_level(logging.WARNING):
        assert (run(make(engine=fresh), TEXTS) == expected(TEXTS)).all()
    assert "2 rows of" in caplog.text and "dropped and encoded again" in caplog.text
    assert sorted(fresh.encoded) == sorted((TEXTS[3], TEXTS[40]))
    caplog.clear()
    assert (run(make(engine=FakeEngine(), on_miss="raise"), TEXTS) == expected(TEXTS)).all()
    assert not caplog.records


def test_what_another_process_mended_is_neither_dropped_nor_encoded(
    make: Make, space: Space, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be mended between this run's look at the table and its read."""
    run(make(), ["a", "b"])
    damage(space, "a")
    theirs = Database(folder(space).parent, writable=True).space(IDENTITY, "name", "fake")
    run(make(engine=FakeEngine(), space=theirs), ["a", "b"])
    refresh, calls = space.refresh, []

    def late(**_: bool) -> Any:
        calls.append(1)
        return space.snapshot if len(calls) == 1 else refresh()

    monkeypatch.setattr(space, "refresh", late)
    caplog.clear()
    fresh = FakeEngine()
    assert (run(make(engine=fresh), ["a", "b"]) == expected(["a", "b"])).all()
    assert fresh.encoded == [] and not caplog.records
    monkeypatch.undo()
    assert (run(make(on_miss="raise"), ["a", "b"]) == expected(["a", "b"])).all()


def test_corrupt_rows_stay_where_nothing_may_be_written(
    make: Make, space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), ["a", "b"])
    damage(space, "a")
    fresh = FakeEngine()
    assert (run(make(engine=fresh, write=False), ["a", "b"]) == expected(["a", "b"])).all()
    assert fresh.encoded == ["a"] and "They are left there" in caplog.text
    with pytest.raises(MissingTextsError, match="1 of 2 texts"):
        run(make(engine=fresh, write=False, on_miss="raise"), ["a", "b"])


def damage(space: Space, text: str) -> None:
    raw = fake_vector(text).tobytes()
    for path in data_files(space):
        if raw in path.read_bytes():
            flip_bit(path, path.read_bytes().index(raw) + 5)
            return
    raise AssertionError(f"{text!r} is in no file")


def test_another_process_was_first(
    make: Make, engine: FakeEngine, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is returned is what later runs will return: the row that was committed first."""
    theirs = make_rows(["b"], identity=IDENTITY)
    theirs = type(theirs)(
        text_keys(IDENTITY.to_bytes(), "", ["b"]),
        theirs.values,
        {"text": ["b"], "prompt": ""},
    )
    embed = engine.embed

    def embed_meanwhile(prompts: Any) -> Any:
        Database(tmp_path, writable=True).space(IDENTITY, "name", "fake", store_text=True).add(
            theirs
        )
        return embed(prompts)

    monkeypatch.setattr(engine, "embed", embed_meanwhile)
    vectors = run(make(), ["a", "b"])
    assert (vectors[1] == theirs.values[0]).all() and (vectors[0] == fake_vector("a")).all()
    assert (run(make(engine=FakeEngine(), on_miss="raise"), ["a", "b"]) == vectors).all()
    assert len(space.refresh()) == 2


def test_another_dimension_than_the_cache(make: Make) -> None:
    run(make(), ["a"])
    with pytest.raises(ChangedModelError, match=r"8 components in the cache, 9 now"):
        run(make(engine=FakeEngine(dim=9)), ["a", "b"])
    with pytest.raises(CacheError, match=r"vectors of 8 components, and those to be added have 9"):
        run(make(engine=FakeEngine(dim=9), canaries="never"), ["a", "b"])


def test_progress_bar_and_summary(
    make: Make, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), ["a"])
    with caplog.at_level(logging.INFO, logger="embcache"):
        make().encode(TextRequest(texts=["a", "b", "b"]))
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "2/2" in bar and "hits=1" in bar and "text/s" in bar
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert len(lines) == 1 and lines[0].startswith("3 texts, 2 unique, 1 hits, 1 encoded, ")
    run(make(), ["c"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("vectors", "n_tokens", "said"),
    [
        (np.zeros((1, 8)), None, r"shape \(1, 8\) for 2 texts"),
        (np.zeros((3, 8)), None, r"shape \(3, 8\) for 2 texts"),
        (np.zeros(8), None, r"shape \(8,\) for 2 texts"),
        (np.zeros((2, 8)), np.zeros(1, np.int32), r"shape \(2, 8\) and 1 token counts for 2"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_an_engine_that_returns_too_few_or_too_many(
    make: Make,
    engine: FakeEngine,
    space: Space,
    monkeypatch: pytest.MonkeyPatch,
    vectors: Any,
    n_tokens: Any,
    said: str,
    cached: bool,
) -> None:
    monkeypatch.setattr(
        engine, "embed", lambda prompts: Embedded(vectors.astype(np.float32), n_tokens)
    )
    with pytest.raises(EngineError, match=rf"The engine \(fake 1\.0\) returned .*{said}"):
        run(make() if cached else make(space=None), ["a", "b"])
    assert len(space.refresh()) == 0


def test_an_engine_that_prepares_too_few(
    make: Make, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "prepare", lambda texts: Prepared([texts[0]], np.ones(1, np.int64)))
    with pytest.raises(EngineError, match="prepared 1 prompts and 1 lengths of 2 texts"):
        run(make(), ["a", "b"])


@pytest.mark.parametrize("kind", ["cached", "read-only", "no cache"])
def test_threads_on_one_pipeline(make: Make, engine: FakeEngine, space: Space, kind: str) -> None:
    """Each gets its own texts' vectors; what one encodes, the others need not."""
    kwargs: dict[str, Any] = {"cached": {}, "read-only": {"write": False}}.get(
        kind, {"space": None}
    )
    pipeline_ = make(**kwargs)
    pipeline_.chunker.tokens = 300

    def work(number: int) -> None:
        texts = [TEXTS[(number * 7 + i * 3) % len(TEXTS)] + f" {i % 2}" for i in range(60)]
        for _ in range(5):
            assert (run(pipeline_, texts) == expected(texts)).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    if kind == "cached":
        assert len(engine.encoded) == len(set(engine.encoded)) == len(space.refresh())
    assert engine.starts == 1


def test_normalisation_is_not_learnt_from_a_damaged_row(make: Make, space: Space) -> None:
    """The first batch decides whether cut vectors are normalised: of intact rows only."""
    unit = TEXTS[:20]
    keys = text_keys(IDENTITY.to_bytes(), "", unit)
    values = expected(unit)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    space.add(Rows(keys, values, {"text": unit, "prompt": ""}))
    raw = values[0].tobytes()
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(raw) + 3, 6)  # an exponent: no length of 1 any more
    engine = FakeEngine()
    engine.embed = lambda prompts: Embedded(values[:1])  # type: ignore[method-assign]
    cut = run(make(engine=engine, truncation=Truncation(3)), unit)
    assert np.allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_an_engine_that_returns_another_type(
    make: Make, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are kept as float32, whatever the engine computes in."""
    monkeypatch.setattr(engine, "embed", lambda prompts: Embedded(np.full((2, 3), 0.1)))  # type: ignore[arg-type]
    vectors = run(make(), ["a", "b"])
    assert vectors.dtype == np.float32 and (vectors == np.float32(0.1)).all()


def test_a_space_that_cannot_be_written_is_found_out_before_the_engine_starts(
    shared_folder: Path,
) -> None:
    """The cache's folder can be written, and the space in it is another user's."""
    theirs = Database(shared_folder, writable=True).space(IDENTITY, "name", "fake")
    run(Pipeline(FakeEngine(), IDENTITY, theirs), TEXTS)
    engine = FakeEngine()
    with refused(*(path for path in folder(theirs).rglob("*") if path.is_dir())):
        space = Database(shared_folder, writable=True).space(IDENTITY, "name", "fake")
        pipeline = Pipeline(engine, IDENTITY, space, on_write_error="raise")
        assert (run(pipeline, TEXTS) == expected(TEXTS)).all()  # hits need no commit
        for _ in range(2):
            with pytest.raises(CacheError, match="data: writing a file is refused"):
                run(pipeline, [*TEXTS, "new"])
        request = TextRequest(texts=["new"], prompt="", show_progress=False)
        with pytest.raises(CacheError, match="data: writing a file is refused"):
            pipeline.fill(
                request, request.keys(IDENTITY.to_bytes()), watcher=Watcher(), refuse={}.update
            )
        assert engine.starts == 0
        reading = Pipeline(engine, IDENTITY, space, write=False)
        assert (run(reading, ["new"]) == expected(["new"])).all()
    assert (run(pipeline, ["new"]) == expected(["new"])).all()  # its owner allowed it


def test_damaged_rows_of_a_space_that_cannot_be_written(
    make: Make, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make(), TEXTS)
    damage(space, TEXTS[3])
    no_hard_links(monkeypatch)
    engine = FakeEngine()
    with pytest.raises(CacheError, match="a hard link is refused"):
        run(make(engine=engine, on_write_error="raise"), TEXTS)
    assert engine.starts == 0


def test_a_space_that_cannot_be_made(
    make: Make, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hard_links(monkeypatch)
    with pytest.raises(CacheError, match="a hard link is refused"):
        run(make(on_write_error="raise"), TEXTS)
    assert engine.starts == 0
