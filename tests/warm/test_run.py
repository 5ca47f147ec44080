from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embcache import CacheError, VllmEncoderWrapper
from embcache.warm import Shard, TextBatch, Warmer, WarmStats, malloc, plan, select
from tests.conftest import encode
from tests.fakes import FakeEngine, fake_vector

Make = Callable[..., VllmEncoderWrapper]
TEXTS = [f"text {i} " + "word " * (i % 30) for i in range(500)]


def stream(texts: list[str], size: int = 70, **kwargs: Any) -> list[TextBatch]:
    return [TextBatch(texts[at : at + size], "file", **kwargs) for at in range(0, len(texts), size)]


def test_afterwards_nothing_is_missing(make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
    encoder = make_encoder()
    stats = Warmer(encoder).run(stream([*TEXTS, *TEXTS[:100]]))
    assert (stats.texts, stats.encoded, stats.stopped) == (600, 500, False)
    assert sorted(fake_engines[-1].encoded) == sorted(TEXTS)
    vectors = encode(make_encoder(on_miss="raise"), TEXTS)
    assert (vectors == np.stack([fake_vector(text) for text in TEXTS])).all()


def test_stats_on_the_way(make_encoder: Make) -> None:
    """What is committed follows what is encoded; the engine's start is told of, and timed."""
    seen: list[WarmStats] = []
    encoder = make_encoder()
    encoder.open_pipeline().chunker.tokens = 200
    stats = Warmer(encoder, lambda stats: seen.append(replace(stats))).run(stream(TEXTS))
    assert seen[0].starting and not any(one.starting for one in seen[1:])
    assert all(one.committed <= one.encoded for one in seen)
    assert any(0 < one.committed < one.encoded for one in seen)
    assert [one.texts for one in seen] == sorted(one.texts for one in seen)
    assert stats.committed == stats.encoded == stats.texts == 500 and stats.tokens > 500
    assert 0 < stats.start_seconds < stats.seconds
    assert stats.working_seconds == stats.seconds - stats.start_seconds


def test_a_second_run_starts_no_engine(make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
    Warmer(make_encoder()).run(stream(TEXTS))
    stats = Warmer(make_encoder()).run(stream(TEXTS))
    assert (stats.hits, stats.encoded, fake_engines[-1].starts) == (500, 0, 0)


def test_prompts_are_those_of_the_encoder_or_of_the_batch(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    prompts = {"query": "q: ", "document": "d: "}
    encoder = make_encoder(prompt_dict=prompts)
    warmer = Warmer(encoder)
    warmer.run(stream(["a"], prompt_type="query"))
    warmer.run(stream(["b"], prompt_type="document"))
    warmer.run(stream(["c"]))
    warmer.run(stream(["d"], prompt="own: ", prompt_type="query"))
    assert fake_engines[-1].encoded == ["q: a", "d: b", "c", "own: d"]


def test_shards_fill_one_cache_together(make_encoder: Make) -> None:
    encoded = 0
    for number in (1, 2, 3):
        encoded += Warmer(make_encoder()).run(select(stream(TEXTS), Shard(number, 3))).encoded
    assert encoded == 500
    assert len(encode(make_encoder(on_miss="raise"), TEXTS)) == 500


def test_a_stop_commits_the_chunk_in_flight_and_the_next_run_goes_on(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    encoder = make_encoder()

    def advance(stats: Any) -> None:
        if stats.encoded >= 100:
            warmer.stop.set()

    warmer = Warmer(encoder, advance)
    encoder.open_pipeline().chunker.tokens = 200
    stats = warmer.run(stream(TEXTS))
    assert stats.stopped and 100 <= stats.encoded < 400
    assert stats.texts == stats.encoded == stats.committed and stats.hits == 0
    assert len(fake_engines[-1].encoded) == stats.encoded
    again = make_encoder()
    rest = Warmer(again).run(stream(TEXTS))
    assert rest.encoded == 500 - stats.encoded and not rest.stopped


class CountedText(str):
    """A text; how many there are now, and were at most."""

    alive = most = 0

    def __init__(self, _: str) -> None:
        CountedText.alive += 1
        CountedText.most = max(CountedText.most, CountedText.alive)

    def __del__(self) -> None:
        CountedText.alive -= 1


def test_few_texts_are_held_at_a_time(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make bench-memory` measures in bytes, where it can be told exactly."""
    monkeypatch.setattr("embcache.warm.run.WINDOW_TEXTS", 50)
    for _ in ("cold", "warm"):
        monkeypatch.setattr(CountedText, "most", 0)
        made = ([CountedText(f"text {at + i}") for i in range(25)] for at in range(0, 3000, 25))
        stats = Warmer(make_encoder()).run(TextBatch(texts, "file") for texts in made)
        assert stats.texts == 3000
        assert 50 <= CountedText.most <= 7 * 50  # one worked on, two waiting, the next ones


ARENAS = """
import ctypes, runpy, sys, threading
if len(sys.argv) > 1:  # by itself: what the package imports has threads, and so arenas, already
    runpy.run_path(sys.argv[1])["limit_arenas"]()
together = threading.Barrier(8)
def work():
    together.wait()
    kept = bytearray(10_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.parametrize(
    ("limited", "environment", "arenas"),
    [
        (True, {}, 2),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"}, 3),
        (True, {"MALLOC_ARENA_MAX": "3"}, 3),
        (False, {"MALLOC_ARENA_MAX": "5"}, 5),  # so many there would be
    ],
)
def test_malloc_gets_two_arenas_unless_the_user_has_set_it(
    limited: bool, environment: dict[str, str], arenas: int
) -> None:
    plain = {k: v for k, v in os.environ.items() if "MALLOC_" not in k and k != "GLIBC_TUNABLES"}
    result = subprocess.run(
        [sys.executable, "-c", ARENAS, *([malloc.__file__] if limited else [])],
        capture_output=True,
        text=True,
        env=plain | environment,
        check=True,
    )
    assert result.stdout.count("<heap nr=") == arenas


def test_an_error_in_the_source_keeps_what_was_encoded(make_encoder: Make) -> None:
    def broken() -> Any:
        yield from stream(TEXTS, 20_000)
        yield TextBatch(["x"] * 20_000, "other")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Warmer(make_encoder()).run(broken())
    assert len(encode(make_encoder(on_miss="raise"), TEXTS)) == 500


def test_an_encoder_that_cannot_write(make_encoder: Make) -> None:
    for kwargs in ({"cache_path": None}, {"read_only": True}, {"on_miss": "raise"}):
        with pytest.raises(CacheError, match="There is no cache to fill"):
            Warmer(make_encoder(**kwargs)).run(stream(TEXTS))


def test_a_plan_counts_and_starts_nothing(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    Warmer(make_encoder()).run(stream(TEXTS[:200]))
    encoder = make_encoder()
    found = plan(Warmer(encoder), encoder, stream([*TEXTS, *TEXTS], 130))
    assert (found.texts, found.unique, found.cached, found.missing) == (1000, 500, 200, 300)
    words = sum(len(text.split()) for text in TEXTS[200:])
    assert 0.5 * words < found.tokens < 2 * words
    assert found.disk_bytes is not None and 300 * 32 < found.disk_bytes < 300 * 1000
    assert fake_engines[-1].starts == 0


def test_a_plan_before_the_first_vector(make_encoder: Make) -> None:
    encoder = make_encoder()
    found = plan(Warmer(encoder), encoder, stream(TEXTS))
    assert (found.missing, found.disk_bytes) == (500, None) and found.tokens > 0
