from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from embcache import CacheWriteError, ChangedModelError, EngineError
from embcache.engine.base import Embedded, Prepared
from embcache.identity.identity import Identity
from embcache.pipeline.canary_texts import LONG, PAIRS, TEXTS
from embcache.pipeline.cosine import cosines
from embcache.pipeline.known_canaries import TOLERANCES, spread
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.policies import CompareCanaries
from embcache.pipeline.request import PairRequest, TextRequest
from embcache.store import SCORES, VECTORS, Database, Layout, Location, Space
from tests.fakes import FakeEngine, FakeScoringEngine

IDENTITY = Identity("org/model", "1", "float32")
Make = Callable[..., Pipeline]


@pytest.fixture
def open_space(tmp_path: Path) -> Callable[..., Space]:
    def open_(layout: Layout = VECTORS, *, store_text: bool = True) -> Space:
        database = Database(tmp_path, writable=True)
        return database.space(IDENTITY, "m", "fake 1.0", layout=layout, store_text=store_text)

    return open_


@pytest.fixture
def make(open_space: Callable[..., Space]) -> Make:
    def make_(
        engine: Any = None,
        canaries: CompareCanaries = "at start",
        layout: Layout = VECTORS,
        *,
        store_text: bool = True,
        **kwargs: Any,
    ) -> Pipeline:
        space = open_space(layout, store_text=store_text)
        return Pipeline(engine or FakeEngine(), IDENTITY, space, canaries=canaries, **kwargs)

    return make_


def run(pipeline: Pipeline, *texts: str, prompt: str = "") -> np.ndarray:
    vectors, _ = pipeline.encode(TextRequest(texts=texts, prompt=prompt, show_progress=False))
    return vectors


def changed(by: float = 1.0, **kwargs: Any) -> FakeEngine:
    engine = FakeEngine(**kwargs)
    engine.changed = by
    return engine


def kept(space: Space) -> int:
    return len(space.canaries.refresh())


def test_texts_are_of_all_kinds_and_never_change() -> None:
    assert 650 < len(LONG.split()) < 750
    joined = "".join(TEXTS)
    assert any(c.isupper() for c in joined) and any(c.isdigit() for c in joined)
    assert "é" in joined and "東" in joined and "\n" in joined
    everything = "\0".join([*TEXTS, *(text for pair in PAIRS for text in pair)])
    assert xxhash.xxh3_64_hexdigest(everything.encode()) == "79d6c6fba2045899"


def test_a_space_gets_canaries_with_its_first_rows(make: Make, open_space: Any) -> None:
    engine = FakeEngine()
    run(make(engine), "a", "b")
    assert kept(open_space()) == len(TEXTS) and engine.canaries == 1
    assert len(open_space().refresh()) == 2  # they are no rows
    again = FakeEngine()
    pipeline = make(again)
    run(pipeline, "a", "c")
    run(pipeline, "d")
    assert again.canaries == 1  # once for each start
    assert kept(open_space()) == len(TEXTS)


def test_a_changed_engine_writes_nothing(make: Make, open_space: Any) -> None:
    run(make(), "a")
    with pytest.raises(
        ChangedModelError,
        match=r"(?s)not the one that filled .*m--float32.*: canary '.*' \(prompt ''\) has cosine "
        r"0\.\d+ with the cached vector.*fake 1.0.*5 of 5.*another cache_path.*canaries=False",
    ):
        run(make(changed()), "a", "b")
    assert len(open_space().refresh()) == 1
    assert run(make(changed(), canaries="never"), "b").shape == (1, 8)


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_two_that_fill_a_space_at_once(make: Make, open_space: Any, by: float) -> None:
    """Neither finds canaries when it starts; the first one's count."""
    first, second = FakeEngine(), changed(by)
    embed = second.embed

    def embed_late(prompts: Any) -> Embedded:
        if "b" in prompts:  # the second has made its canaries by now
            run(make(first), "a")
        return embed(prompts)

    second.embed = embed_late  # type: ignore[method-assign]
    pipeline = make(second)
    if not by:
        run(pipeline, "b")
        assert len(open_space().refresh()) == 2
    else:
        with pytest.raises(ChangedModelError, match=r"Another process fills .* at the same time: "):
            run(pipeline, "b")
    assert kept(open_space()) == len(TEXTS)
    again = FakeEngine()
    run(make(again), "c")  # the canaries are the first one's
    assert again.canaries == 1


def test_a_fully_cached_run_starts_no_engine_for_them(make: Make) -> None:
    run(make(), "a")
    engine = changed()
    run(make(engine), "a")
    assert engine.canaries == engine.starts == 0


def test_before_hits_an_engine_at_hand_is_compared_first(make: Make) -> None:
    run(make(), "a")
    with pytest.raises(ChangedModelError, match="not the one that filled"):
        run(make(changed(), canaries="before hits"), "a")
    with pytest.raises(ChangedModelError, match="not the one that filled"):
        run(make(changed(), canaries="before hits", on_miss="raise"), "a")
    with pytest.raises(ChangedModelError, match="not the one that filled"):
        run(make(changed(), canaries="before hits", write=False), "a")


def test_an_engine_that_starts_again_is_compared_again(make: Make) -> None:
    engine = FakeEngine()
    pipeline = make(engine)
    run(pipeline, "a")
    engine.close()
    engine.changed = 1.0
    with pytest.raises(ChangedModelError, match="not the one that filled"):
        run(pipeline, "b")


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_tolerance_follows_the_dtype(make: Make, dtype: str) -> None:
    run(make(FakeEngine(dtype=dtype)), "a")
    shift = TOLERANCES[dtype]  # times the root of 8 components, over a length of about that
    run(make(changed(0.2 * shift, dtype=dtype)), "b")
    with pytest.raises(ChangedModelError, match=f"the most that {dtype} explains"):
        run(make(changed(5 * shift, dtype=dtype)), "c")


def test_an_engine_with_an_unknown_dtype_has_the_widest(make: Make) -> None:
    run(make(FakeEngine(dtype="unknown")), "a")
    run(make(changed(0.2 * max(TOLERANCES.values()), dtype="unknown")), "b")


def test_another_length_is_a_change(make: Make) -> None:
    class Longer(FakeEngine):
        def embed(self, prompts: Any) -> Embedded:
            embedded = super().embed(prompts)
            return Embedded(embedded.vectors * 1.1, embedded.n_tokens)

    run(make(), "a")
    with pytest.raises(ChangedModelError, match=r"cosine 1.000000 .*1.1000 times its length"):
        run(make(Longer()), "b")


def test_a_change_that_only_long_texts_show(make: Make) -> None:
    class Shorter(FakeEngine):
        def prepare(self, texts: Any) -> Prepared:
            return super().prepare([text if len(text) < 999 else text[:999] for text in texts])

    run(make(), "a")
    with pytest.raises(ChangedModelError, match=r"canary 'The harbour carried.*1 of 5 canaries"):
        run(make(Shorter()), "b")


def test_prompts_are_kept_and_compared_whatever_the_next_prompt(
    make: Make, open_space: Any
) -> None:
    run(make(), "a", prompt="query: ")
    found = open_space().canaries.refresh()
    assert set(found.take(np.arange(5), ["prompt"])["prompt"].to_pylist()) == {"query: "}
    with pytest.raises(ChangedModelError, match=r"\(prompt 'query: '\)"):
        run(make(changed()), "a", prompt="passage: ")
    for number in range(9):
        run(make(), f"b{number}", prompt=f"p{number}: ")
    assert kept(open_space()) == 4 * len(TEXTS)  # not for each of many prompts


def test_without_texts_no_prompt_is_kept(make: Make, open_space: Any) -> None:
    run(make(store_text=False), "a", prompt="secret: ")
    assert kept(open_space()) == len(TEXTS)
    assert "prompt" not in open_space().canaries.refresh().columns
    with pytest.raises(ChangedModelError, match=r"\(prompt ''\)"):
        run(make(changed(), store_text=False), "b", prompt="secret: ")


def test_scores(make: Make, open_space: Any) -> None:
    def score(engine: Any, query: str) -> None:
        request = PairRequest(
            queries=[query], documents=["d"], prefixes=("q: ", ""), show_progress=False
        )
        make(engine, layout=SCORES).encode(request)

    score(FakeScoringEngine(), "a")
    assert kept(open_space(SCORES)) == len(PAIRS)
    other = FakeScoringEngine()
    other.changed = 0.5
    with pytest.raises(ChangedModelError, match=r"has score -?\d.* in the cache, -?\d.* now"):
        score(other, "b")
    score(FakeScoringEngine(), "b")


def test_a_cache_without_canaries_gets_them_with_the_next_rows(make: Make, open_space: Any) -> None:
    run(make(canaries="never"), "a")
    assert not Location.of(open_space().canaries.location).has_table()
    run(make(), "a")
    assert kept(open_space()) == 0  # nothing was written
    run(make(write=False), "b")
    assert kept(open_space()) == 0
    run(make(), "b")
    assert kept(open_space()) == len(TEXTS)


def test_texts_that_the_engine_refuses_are_left_out(
    make: Make, open_space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky(FakeEngine):
        def prepare(self, texts: Any) -> Prepared:
            self.refuse = {text for text in texts if len(text) > 1000}
            return super().prepare(texts)

    with caplog.at_level(logging.INFO):
        run(make(Picky()), "a")
    assert kept(open_space()) == len(TEXTS) - 1
    assert "is left out" in caplog.text
    run(make(Picky()), "b")  # and the others are compared one by one

    class Mute(FakeEngine):
        def prepare(self, texts: Any) -> Prepared:
            self.refuse = set(texts) & set(TEXTS)
            return super().prepare(texts)

    with pytest.raises(EngineError, match=r"(?s)canaries of .* cannot be encoded.*canaries=False"):
        run(make(Mute()), "c")


def test_an_engine_that_encodes_none_gets_a_warning(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(FakeEngine):
        def embed(self, prompts: Any) -> Embedded:
            if any(text in TEXTS for text in prompts):
                raise RuntimeError("400: no such input")
            return super().embed(prompts)

    assert run(make(Mute()), "a").shape == (1, 8)
    assert "gets no canaries" in caplog.text and "400: no such input" in caplog.text


def test_canaries_for_which_memory_does_not_suffice_at_once_are_compared_one_by_one(
    make: Make,
) -> None:
    class Small(FakeEngine):
        room = 1

        def embed(self, prompts: Any) -> Embedded:
            if len(prompts) > self.room:
                raise RuntimeError("CUDA out of memory")
            return super().embed(prompts)

    run(make(), "a")
    engine = Small()
    assert run(make(engine), "b").shape == (1, 8) and engine.encoded
    engine = Small()
    engine.room, engine.memory_advice = 0, "Lower max_num_seqs."  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"canaries .* out of memory\. Lower max_num_seqs\. can"):
        run(make(engine), "c")


def test_canaries_that_cannot_be_written_wait_for_the_next_write(
    make: Make, open_space: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add, full = Space.add, True

    def refused(self: Space, rows: Any) -> Any:
        if full and self.name == "_canaries":
            raise CacheWriteError("no space left")
        return add(self, rows)

    monkeypatch.setattr(Space, "add", refused)
    pipeline = make()
    run(pipeline, "a")
    run(pipeline, "b")
    (said,) = [r.getMessage() for r in caplog.records]
    assert "could not be written" in said and "no space left" in said
    full = False
    run(pipeline, "c")
    assert kept(open_space()) == len(TEXTS)


def test_where_rows_cannot_be_written_nothing_more_is_said_of_canaries(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full after the first rows: one message, of the rows."""
    add, commits = Space.add, []

    def refused(self: Space, rows: Any) -> Any:
        if commits:
            raise CacheWriteError("no space left")
        commits.append(self)
        return add(self, rows)

    monkeypatch.setattr(Space, "add", refused)
    pipeline = make()
    pipeline.chunker.tokens, pipeline.chunker.adapts = 1, False
    run(pipeline, "a", "b", "c")
    (said,) = [r.getMessage() for r in caplog.records]
    assert "2 of 3 texts that were not cached are returned, but not kept" in said


@pytest.mark.parametrize("kind", ["data", "_versions"])
def test_damage_among_them_stops_no_run(
    make: Make, open_space: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), "a")
    folder = Path(open_space().canaries.location.uri) / kind
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert run(make(), "a", "b").shape == (2, 8)
    assert "cannot be used" in caplog.text


def test_a_damaged_canary_is_not_compared(
    make: Make, open_space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), "a")
    space = open_space().canaries
    values, _ = space.refresh().read_all(np.arange(5), space.snapshot.keys())
    [path] = (Path(space.location.uri) / "data").iterdir()
    raw = bytearray(path.read_bytes())
    raw[raw.index(values[2].tobytes()) + 3] ^= 0x40
    path.write_bytes(bytes(raw))
    assert run(make(), "b").shape == (1, 8)
    assert "1 canaries" in caplog.text and "fix=True" in caplog.text


def test_spread_and_cosine() -> None:
    a = np.array([3, 4], np.float32)
    assert spread(a, a) == 0 and cosines(a[None], a[None]) == pytest.approx([1])
    assert spread(a, np.array([3, 4.5], np.float32)) == pytest.approx(0.1)
    assert spread(a, np.zeros(3, np.float32)) == float("inf")
    one, other = np.array([1e-6], np.float32), np.array([2e-6], np.float32)
    assert spread(one, other) == pytest.approx(1e-6)  # scores near 0
    assert cosines(a[None], np.zeros((1, 2), np.float32)).tolist() == [0]
