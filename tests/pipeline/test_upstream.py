"""A team's cache behind one's own, with folders as upstreams."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import ChangedModelError, MissingTextsError
from embcache.errors import CacheWriteError
from embcache.identity.identity import Identity
from embcache.pipeline import outbox, upstream, upstream_cache
from embcache.pipeline.canary_texts import TEXTS
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import PairRequest, TextRequest
from embcache.pipeline.stats import EncodeStats, Watcher
from embcache.pipeline.upstream import Upstream
from embcache.pipeline.upstream_cache import UpstreamCache
from embcache.store import SCORES, VECTORS, Database, Layout, Location, Space
from tests.fakes import FakeEngine, FakeScoringEngine, fake_vector
from tests.spaces import refused
from tests.store.test_damage import data_files, flip_bit

IDENTITY = Identity("org/model", "1", "float32")
Open = Callable[..., Space]
Make = Callable[..., Pipeline]


@pytest.fixture
def open_at(tmp_path: Path) -> Open:
    def open_(name: str, layout: Layout = VECTORS, *, store_text: bool = True) -> Space:
        database = Database(tmp_path / name, writable=False)
        return database.space(IDENTITY, "m", "fake 1.0", layout=layout, store_text=store_text)

    return open_


@pytest.fixture
def make(tmp_path: Path, open_at: Open) -> Make:
    """Pipelines over the cache "own", with the upstreams that are named."""

    def make_(
        *upstreams: str,
        engine: Any = None,
        own: str | None = "own",
        write_upstream: bool = False,
        layout: Layout = VECTORS,
        **kwargs: Any,
    ) -> Pipeline:
        caches = [
            UpstreamCache(Location.of(tmp_path / name), write=write_upstream and not at)
            for at, name in enumerate(upstreams)
        ]
        open_space = partial(
            Database.space,
            identity=IDENTITY,
            model="m",
            engine_version="fake 1.0",
            layout=layout,
            compact_automatically=False,
        )
        return Pipeline(
            engine or FakeEngine(),
            IDENTITY,
            None if own is None else open_at(own, layout),
            upstream=Upstream(caches, open_space) if caches else None,
            **kwargs,
        )

    return make_


def ask(pipeline: Pipeline, *texts: str, prompt: str = "") -> tuple[np.ndarray, EncodeStats]:
    return pipeline.encode(TextRequest(texts=texts, prompt=prompt, show_progress=False))


def expected(*texts: str) -> np.ndarray:
    return np.stack([fake_vector(text) for text in texts])


def rows_at(space: Space) -> int:
    return len(space.refresh())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def changed(by: float = 1.0) -> FakeEngine:
    engine = FakeEngine()
    engine.changed = by
    return engine


def test_what_is_found_there_is_kept_here(make: Make, open_at: Open) -> None:
    filler = FakeEngine()
    ask(make(own="team", engine=filler), "a", "b", "c")
    engine = FakeEngine()
    vectors, stats = ask(make("team", engine=engine), "c", "a", "c")
    assert vectors.tobytes() == expected("c", "a", "c").tobytes()
    assert engine.starts == 0
    assert (stats.texts, stats.unique, stats.hits, stats.upstream, stats.encoded) == (3, 2, 2, 2, 0)
    assert "2 hits (2 of them upstream), 0 encoded" in str(stats)
    # And without the upstream, in a new process as it were.
    again, stats = ask(make(engine=engine, on_miss="raise"), "a", "c")
    assert again.tobytes() == expected("a", "c").tobytes() and engine.starts == 0
    assert (stats.hits, stats.upstream) == (2, 0) and "upstream" not in str(stats)
    assert rows_at(open_at("own")) == 2 and rows_at(open_at("team")) == 3


def test_all_columns_are_kept(make: Make, open_at: Open) -> None:
    ask(make(own="team"), "one two three", prompt="p: ")
    request = TextRequest(texts=["one two three"], prompt="p: ", task="Task", prompt_type="query")
    make("team").encode(request)
    row = open_at("own").refresh().take(np.array([0]), ["text", "prompt", "task", "n_tokens"])
    assert row.to_pylist() == [
        {"text": "one two three", "prompt": "p: ", "task": "Task", "n_tokens": 4}
    ]


def test_stats_add_up() -> None:
    total = EncodeStats(3, 2, 2, 0, upstream=1) + EncodeStats(3, 3, 3, 0, upstream=2)
    assert total.upstream == 3 and "5 hits (3 of them upstream)" in str(total)


@pytest.mark.parametrize("piece", [1, 64 * 2**20])
def test_order_and_duplicates_are_the_callers(
    make: Make, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(upstream, "PIECE_BYTES", piece)
    texts = [f"{'word ' * (i % 7)}{i % 30}" for i in range(80)]
    ask(make(own="team"), *texts[:40:2])
    ask(make(), *texts[10:20])
    engine = FakeEngine()
    vectors, stats = ask(make("team", engine=engine), *texts, *texts[::-1])
    assert vectors.tobytes() == expected(*texts, *texts[::-1]).tobytes()
    there = {*texts[:40:2]} - {*texts[10:20]}
    assert stats.upstream == len(there)
    assert sorted(engine.encoded) == sorted({*texts} - there - {*texts[10:20]})
    assert stats.hits + stats.encoded == stats.unique


def test_two_upstreams_are_asked_in_turn(make: Make, open_at: Open) -> None:
    ask(make(own="first"), "a", "b")
    ask(make(own="second"), "b", "c")
    engine = FakeEngine()
    vectors, stats = ask(make("first", "second", engine=engine), "d", "c", "b", "a")
    assert vectors.tobytes() == expected("d", "c", "b", "a").tobytes()
    assert stats.upstream == 3 and engine.encoded == ["d"]
    assert rows_at(open_at("own")) == 4 and rows_at(open_at("first")) == 2


def test_a_damaged_row_is_encoded_instead(
    make: Make, open_at: Open, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"text {i}" for i in range(50)]
    ask(make(own="team", engine=FakeEngine(batch_size=100)), *texts)
    (path,) = data_files(open_at("team"))
    for text in texts[3:5]:
        flip_bit(path, path.read_bytes().index(fake_vector(text).tobytes()) + 2)
    engine = FakeEngine()
    pipeline = make("team", engine=engine)
    for _ in range(2):
        vectors, stats = ask(pipeline, *texts)
        assert vectors.tobytes() == expected(*texts).tobytes()
    assert sorted(engine.encoded) == texts[3:5] and stats.hits == 50
    (said,) = warnings(caplog)
    assert said.startswith("2 rows of the upstream cache ") and "fail their checksum" in said
    assert rows_at(open_at("team")) == 50  # nothing is dropped there


def test_a_file_that_is_gone_costs_one_warning(
    make: Make, open_at: Open, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team"), "a", "b")
    for path in data_files(open_at("team")):
        path.unlink()
    vectors, stats = ask(make("team"), "a", "b")
    assert vectors.tobytes() == expected("a", "b").tobytes() and stats.encoded == 2
    (said,) = warnings(caplog)
    assert "team is not used, and the run goes on without" in said and "10 minutes" in said


def test_a_folder_that_vanishes_in_mid_run(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team"), "a", "b")
    pipeline = make("team")
    assert ask(pipeline, "a")[1].upstream == 1
    shutil.rmtree(tmp_path / "team")
    for texts in (["b"], ["c"]):
        vectors, stats = ask(pipeline, *texts)
        assert vectors.tobytes() == expected(*texts).tobytes() and stats.encoded == 1
    (said,) = warnings(caplog)
    assert "team is not used" in said and "does not exist" in said


def test_what_is_named_beside_the_cache_is_said(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder above it, or a space in it: both look like a cache that has nothing yet."""
    ask(make(own="all/team"), "a")
    (space,) = (tmp_path / "all" / "team").iterdir()
    ask(make("all", f"all/team/{space.name}"), "a")
    above, below = warnings(caplog)
    assert "all is not used" in above and "It holds caches: team." in above
    assert f"its cache is {space.parent}" in below
    caplog.clear()
    (tmp_path / "new").mkdir()
    ask(make("new", own=None), "a")
    ask(make("all", own=None, write_upstream=True), "b")  # one may begin a cache there
    assert not warnings(caplog) and len([*(tmp_path / "all").iterdir()]) == 2


def test_it_is_tried_again_after_a_while(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upstream_cache, "PAUSE_SECONDS", 0.0)
    pipeline = make("team")
    ask(pipeline, "x")
    ask(pipeline, "y")  # fails again, and is not said again
    assert len(warnings(caplog)) == 1
    ask(make(own="team"), "a")
    assert ask(pipeline, "a")[1].upstream == 1


def test_a_newer_format_costs_one_warning(
    make: Make, open_at: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from embcache.store import schema

    monkeypatch.setattr(schema, "FORMAT_VERSION", 99)
    ask(make(own="team", canaries="never"), "a")
    monkeypatch.undo()
    vectors, stats = ask(make("team"), "a")
    assert vectors.tobytes() == expected("a").tobytes() and stats.encoded == 1
    (said,) = warnings(caplog)
    assert "has format version 99" in said and "goes on without" in said


def test_an_unreadable_upstream_costs_one_warning(
    make: Make, tmp_path: Path, open_at: Open, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "team").write_text("no folder")
    vectors, stats = ask(make("team"), "a")
    assert vectors.tobytes() == expected("a").tobytes() and stats.encoded == 1
    (said,) = warnings(caplog)
    assert "team is not used" in said


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_costs_one_warning(
    shared_folder: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    def open_space(database: Database, **kwargs: Any) -> Space:
        return database.space(IDENTITY, "m", "fake 1.0", **kwargs)

    team = Database(shared_folder / "team", writable=True)
    ask(Pipeline(FakeEngine(), IDENTITY, open_space(team)), "a", "b")
    (shared_folder / "team").chmod(mode)
    with refused():
        chain = Upstream([UpstreamCache(Location.of(shared_folder / "team"))], open_space)
        pipeline = Pipeline(FakeEngine(), IDENTITY, None, upstream=chain)
        for text in ("a", "b"):
            assert ask(pipeline, text)[1].encoded == 1
    (shared_folder / "team").chmod(0o755)
    (said,) = warnings(caplog)
    assert "team is not used" in said and "Permission denied" in said


def test_the_progress_bar_counts_them_as_hits(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(make(own="team"), "a", "b")
    make("team").encode(TextRequest(texts=["a", "b", "c"], show_progress=True))
    assert "hits=2" in capsys.readouterr().err


def test_a_hanging_upstream_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team"), "a", "b")
    wakes = threading.Event()
    refresh = Space.refresh

    def hang(self: Space, **kwargs: Any) -> Any:
        if self.location.parent.name == "team":
            wakes.wait(20)
        return refresh(self, **kwargs)

    monkeypatch.setattr(upstream_cache, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(Space, "refresh", hang)
    pipeline = make("team")
    began = time.monotonic()
    for text in ("a", "b"):  # the second time, it is not asked any more
        vectors, stats = ask(pipeline, text)
        assert vectors.tobytes() == expected(text).tobytes() and stats.encoded == 1
    assert time.monotonic() - began < 15
    wakes.set()
    (said,) = warnings(caplog)
    assert "did not get on for 0.2 seconds" in said and "does not try it again" in said


def test_what_gets_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_cache, "PATIENCE_SECONDS", 1.0)

    def slowly(beat: Callable[[], None]) -> str:
        for _ in range(8):
            time.sleep(0.2)
            beat()
        return "done"

    assert UpstreamCache(Location.of("x")).ask(slowly) == "done"


def test_what_is_no_failure_of_the_upstream_is_raised() -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        UpstreamCache(Location.of("x")).ask(interrupt)


def test_what_is_encoded_is_written_in_one_commit(make: Make, open_at: Open) -> None:
    texts = [f"text {i}" for i in range(40)]
    engine = FakeEngine(batch_size=4)
    pipeline = make("team", engine=engine, write_upstream=True)
    ask(pipeline, *texts)
    team = open_at("team")
    assert rows_at(team) == rows_at(open_at("own")) == 40
    assert len(data_files(team)) == 1
    assert len(team.canaries.refresh()) == len(TEXTS)
    row = team.refresh().take(np.array([0]), ["text", "n_tokens"]).to_pylist()[0]
    assert row["text"] in texts and row["n_tokens"] == 2
    # And a colleague has them.
    fresh = FakeEngine()
    _, stats = ask(make("team", engine=fresh, own="colleague"), *texts)
    assert stats.upstream == 40 and fresh.starts == 0


def test_much_is_written_before_the_end(
    make: Make, open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "FULL_BYTES", 1)
    monkeypatch.setattr("embcache.pipeline.chunks.WINDOW_TEXTS", 10)
    texts = [f"text {i}" for i in range(20)]
    ask(make("team", engine=FakeEngine(batch_size=4), write_upstream=True), *texts)
    assert rows_at(open_at("team")) == 20 and len(data_files(open_at("team"))) > 1


def test_only_the_first_upstream_is_written(make: Make, open_at: Open) -> None:
    ask(make(own="second"), "a")
    ask(make("first", "second", write_upstream=True), "a", "b")
    assert rows_at(open_at("first")) == 1  # what is encoded, not what others have
    assert rows_at(open_at("second")) == 1 and rows_at(open_at("own")) == 2


def test_without_a_cache_of_ones_own_it_is_written(make: Make, open_at: Open) -> None:
    vectors, stats = ask(make("team", own=None, write_upstream=True), "a", "b")
    assert vectors.tobytes() == expected("a", "b").tobytes() and stats.encoded == 2
    assert rows_at(open_at("team")) == 2
    assert len(open_at("team").canaries.refresh()) == len(TEXTS)


def test_what_was_encoded_before_an_error_is_written(make: Make, open_at: Open) -> None:
    engine = FakeEngine(batch_size=2)
    engine.refuse = {"bad"}
    with pytest.raises(Exception, match="cannot be encoded"):
        ask(make("team", engine=engine, write_upstream=True), "a", "bad", "c")
    assert rows_at(open_at("team")) == 2


def test_an_upstream_that_may_not_be_written_is_still_read(
    shared_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def open_space(database: Database, **kwargs: Any) -> Space:
        return database.space(IDENTITY, "m", "fake 1.0", **kwargs)

    team = Database(shared_folder / "team", writable=True)
    ask(Pipeline(FakeEngine(), IDENTITY, open_space(team)), "a", "b")
    place = open_space(team).location.folder
    folders = [team.location.folder, *(p for p in [place, *place.rglob("*")] if p.is_dir())]
    with refused(*folders):
        cache = UpstreamCache(Location.of(team.location), write=True)
        own = Database(shared_folder / "own", writable=True)
        chain = Upstream([cache], open_space)
        pipeline = Pipeline(FakeEngine(), IDENTITY, open_space(own), upstream=chain)
        assert ask(pipeline, "a", "c")[1].upstream == 1
        assert ask(pipeline, "b", "d")[1].upstream == 1
    (said,) = warnings(caplog)
    assert "team cannot be written" in said and "goes on without" in said
    assert rows_at(open_space(team)) == 2


@pytest.mark.parametrize("kept", [0, 3])
def test_what_is_not_kept_is_counted_with_what_was_found(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kept: int,
) -> None:
    """Where the disk is full when rows of the upstream are to be kept, or later."""
    ask(make(own="team"), "a", "b", "c")
    add = Space.add

    def fails(space: Space, rows: Any) -> Any:
        if space.location.parent.name == "own" and len(rows) != kept:
            raise CacheWriteError("the disk is full.")
        return add(space, rows)

    monkeypatch.setattr(Space, "add", fails)
    vectors, stats = ask(make("team", canaries="never"), *"abcde")
    assert vectors.tobytes() == expected(*"abcde").tobytes()
    assert (stats.upstream, stats.encoded, stats.unwritten) == (3, 2, 5 - kept)
    (said,) = warnings(caplog)
    assert f"{5 - kept} of 5 texts that were not cached are returned" in said
    assert f"but not kept; {kept} are." in said


def test_on_miss_raise_is_served_and_keeps_what_is_found(make: Make, open_at: Open) -> None:
    ask(make(own="team"), "a", "b")
    engine = FakeEngine()
    pipeline = make("team", engine=engine, on_miss="raise")
    vectors, _ = ask(pipeline, "b", "a")
    assert vectors.tobytes() == expected("b", "a").tobytes()
    with pytest.raises(
        MissingTextsError, match=r"2 of 3 texts .*own.*, nor upstream in .*team"
    ) as e:
        ask(pipeline, "x", "a", "y")
    assert e.value.missing == 2 and engine.starts == 0 and engine.canaries == 0
    assert rows_at(open_at("own")) == 2


@pytest.mark.parametrize("own", [None, "own"])
def test_where_nothing_may_be_written_it_serves_from_memory(
    make: Make, open_at: Open, own: str | None
) -> None:
    ask(make(own="team"), "a", "b")
    ask(make(), "c")
    engine = FakeEngine()
    pipeline = make("team", engine=engine, own=own, write=False)
    for _ in range(2):
        vectors, stats = ask(pipeline, "a", "b", "a")
        assert vectors.tobytes() == expected("a", "b", "a").tobytes() and stats.upstream == 2
    assert engine.starts == 0 and stats.unwritten == 0
    assert rows_at(open_at("own")) == 1


def test_scores(make: Make, open_at: Open) -> None:
    def score(pipeline: Pipeline) -> tuple[np.ndarray, EncodeStats]:
        request = PairRequest(queries=["q", "q"], documents=["a", "b"], show_progress=False)
        return pipeline.encode(request)

    filler = FakeScoringEngine()
    scores, _ = score(make(own="team", layout=SCORES, engine=filler))
    engine = FakeScoringEngine()
    found, stats = score(make("team", layout=SCORES, engine=engine))
    assert found.tobytes() == scores.tobytes() and stats.upstream == 2 and engine.starts == 0
    assert rows_at(open_at("own", SCORES)) == 2


def test_fill_takes_what_is_there(make: Make, open_at: Open) -> None:
    class Told(Watcher):
        items = 0

        def found(self, items: int) -> None:
            self.items += items

    ask(make(own="team"), "a", "b")
    engine, told = FakeEngine(), Told()
    pipeline = make("team", engine=engine, write_upstream=True)
    request = TextRequest(texts=["a", "b", "c"], show_progress=False)
    keys = request.keys(IDENTITY.to_bytes())
    stats = pipeline.fill(request, keys, watcher=told, refuse=lambda _: None)
    assert (stats.hits, stats.upstream, stats.encoded) == (2, 2, 1) and told.items == 2
    assert engine.encoded == ["c"] and rows_at(open_at("own")) == 3
    assert rows_at(open_at("team")) == 2  # not yet: windows are joined
    pipeline.flush()
    assert rows_at(open_at("team")) == 3


def test_fill_stages_what_is_there_once(make: Make, open_at: Open) -> None:
    ask(make(own="first"), "a", "b")
    ask(make(own="second"), "b", "c")
    engine, staged = FakeEngine(), list[str]()
    pipeline = make("first", "second", engine=engine)
    assert pipeline.space is not None
    pipeline.space.stage(lambda file, keys: staged.append(file))
    request = TextRequest(texts=["a", "b", "c", "d"], show_progress=False)
    keys = request.keys(IDENTITY.to_bytes())
    stats = pipeline.fill(request, keys, watcher=Watcher(), refuse=lambda _: None)
    assert (stats.upstream, stats.encoded, engine.encoded) == (3, 1, ["d"])
    pipeline.space.add_staged(staged)
    assert rows_at(open_at("own")) == 4


def test_canaries_that_differ_refuse_the_upstream(
    make: Make, open_at: Open, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team", engine=changed()), "a", "b")
    ask(make(), "x")
    engine = FakeEngine()
    pipeline = make("team", engine=engine)
    for text in ("a", "b"):
        vectors, stats = ask(pipeline, text)
        assert vectors.tobytes() == expected(text).tobytes() and stats.upstream == 0
    (said,) = warnings(caplog)
    assert "5 of 5 canaries differ" in said and "cosine 0." in said and "another model's" in said
    assert "`CachedSpace.remove`" in said


def test_an_upstream_of_another_model_is_not_written(
    make: Make, open_at: Open, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team", engine=changed()), "a")
    ask(make(), "x")
    ask(make("team", write_upstream=True), "y")
    assert rows_at(open_at("team")) == 1
    assert "canaries differ" in warnings(caplog)[0]


def test_canaries_are_copied_and_catch_an_engine_that_differs(make: Make, open_at: Open) -> None:
    ask(make(own="team"), "a", "b")
    engine = changed()
    with pytest.raises(ChangedModelError, match=r"not the one that filled .*(own|team)"):
        ask(make("team", engine=engine), "a", "c")
    assert engine.encoded == []
    assert len(open_at("own").canaries.refresh()) == len(TEXTS)
    with pytest.raises(ChangedModelError, match=r"not the one that filled .*own"):
        ask(make(engine=engine), "c")
    assert rows_at(open_at("own")) == 1


def test_an_engine_at_hand_is_compared_before_anything_is_kept(make: Make, open_at: Open) -> None:
    ask(make(own="team"), "a", "b")
    pipeline = make("team", engine=changed(), canaries="before hits")
    with pytest.raises(ChangedModelError, match=r"not the one that filled .*team"):
        ask(pipeline, "a", "b")
    assert rows_at(open_at("own")) == 0
    ask(make("team", canaries="before hits"), "a", "b")
    assert rows_at(open_at("own")) == 2


@pytest.mark.parametrize("own", [None, "own"])
def test_where_nothing_is_written_the_engine_is_compared_with_the_upstreams(
    make: Make, own: str | None
) -> None:
    ask(make(own="team"), "a")
    pipeline = make("team", engine=changed(), own=own, write=False)
    assert ask(pipeline, "a")[1].upstream == 1
    with pytest.raises(ChangedModelError, match=r"not the one that filled .*team"):
        ask(pipeline, "a", "b")
    ask(make("team", own=own, write=False), "a", "b")


def test_an_engine_that_runs_is_compared_with_what_comes_later(make: Make, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    pipeline = make("team", own=None, write=False)
    ask(pipeline, "x")
    ask(make(own="team", engine=changed()), "a")
    with pytest.raises(ChangedModelError, match=r"not the one that filled .*team"):
        ask(pipeline, "a", "y")


@pytest.mark.parametrize("store_text", [True, False])
def test_canaries_of_every_prompt_and_without_texts_are_compared(
    make: Make, open_at: Open, store_text: bool
) -> None:
    team = open_at("team", store_text=store_text)
    filler = Pipeline(FakeEngine(), IDENTITY, team)
    for prompt in ("q: ", "d: "):
        ask(filler, "a", prompt=prompt)
    own = make("team", engine=changed())
    with pytest.raises(ChangedModelError, match="not the one that filled"):
        ask(own, "a", "b", prompt="d: ")
    engine = FakeEngine()
    ask(make("team", engine=engine), "a", "b", prompt="d: ")
    assert engine.encoded == ["d: b"]


def test_canaries_that_are_there_twice(make: Make, open_at: Open) -> None:
    """As two processes leave them that add them at the same moment."""
    ask(make(own="team"), "a", "b")
    canaries = open_at("team").canaries
    table = canaries.table()
    table.add(table.to_arrow())
    assert len(canaries.refresh()) == 2 * len(TEXTS)
    ask(make("team"), "a", "c")
    assert len(open_at("own").canaries.refresh()) == len(TEXTS)


def test_canaries_never_are_not_looked_at(make: Make, open_at: Open) -> None:
    ask(make(own="team"), "a")
    ask(make("team", engine=changed(), canaries="never"), "a", "b")
    assert not open_at("own").canaries.location.has_table()


def test_another_dimension_refuses_the_upstream(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    ask(make(own="team", engine=FakeEngine(dim=4), canaries="never"), "a")
    ask(make(canaries="never"), "x")
    vectors, _ = ask(make("team", canaries="never"), "a")
    assert vectors.tobytes() == expected("a").tobytes()
    assert "its vectors have 4 components, those here 8" in warnings(caplog)[0]


def test_threads(make: Make, open_at: Open) -> None:
    texts = [f"text {i}" for i in range(60)]
    ask(make(own="team"), *texts[:40])
    engine = FakeEngine()
    pipeline = make("team", engine=engine, write_upstream=True)

    def one(start: int) -> None:
        mine = texts[start : start + 30]
        assert ask(pipeline, *mine)[0].tobytes() == expected(*mine).tobytes()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, [0, 10, 20, 30, 5, 15, 25, 30]))
    assert sorted(engine.encoded) == sorted(texts[40:])
    assert rows_at(open_at("own")) == 60 and rows_at(open_at("team")) == 60


def test_two_threads_take_a_row_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}" for i in range(20)]
    ask(make(own="team"), *texts)
    read = upstream._read

    def slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return read(*args)

    monkeypatch.setattr(upstream, "_read", slowly)
    pipeline = make("team")
    with ThreadPoolExecutor(3) as pool:
        stats = list(pool.map(lambda _: ask(pipeline, *texts)[1], range(3)))
    assert sum(one.upstream for one in stats) == 20
    assert all(one.hits == 20 for one in stats)
