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

from embcache import CacheError, InputError, VllmEncoderWrapper
from embcache.warm import BadRow, Shard, TextBatch, Warmer, WarmStats, malloc, select
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


def lines(texts: list[str], start: int, **kwargs: Any) -> TextBatch:
    numbers = range(start, start + len(texts))
    return TextBatch(texts, "x.jsonl", numbers=numbers, unit="line", **kwargs)


def test_refused_texts_are_left_out_with_their_places(
    make_encoder: Make, fake_engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of windows joined from small batches and cut from large ones, with a prompt, and twice."""
    monkeypatch.setattr("embcache.warm.run.WINDOW_TEXTS", 50)
    batches = [
        lines([*TEXTS[:30], "", *TEXTS[30:170]], 1, prompt="p: "),
        lines(["a", "", "b"], 900),
    ]
    batches.insert(1, TextBatch(["no place known", "bad"], "elsewhere"))
    for encoded in (173, 0):
        reported: list[BadRow] = []
        encoder = make_encoder()
        fake_engines[-1].refuse = {"p: ", "", "bad"}
        stats = Warmer(encoder, report=reported.append).run(batches)
        assert (stats.encoded, stats.refused, stats.committed) == (encoded, 3, encoded)
        assert stats.hits + stats.encoded == stats.texts == 173 and not stats.stopped
        assert [str(row) for row in reported] == [
            "x.jsonl, line 31: '' is refused by the fake",
            "elsewhere: 'bad' is refused by the fake",
            "x.jsonl, line 901: '' is refused by the fake",
        ]


def test_a_report_that_raises_ends_the_run_and_keeps_what_was_encoded(
    make_encoder: Make, fake_engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embcache.warm.run.WINDOW_TEXTS", 100)

    def stop(row: BadRow) -> None:
        raise InputError(str(row))

    encoder = make_encoder()
    fake_engines[-1].refuse = {TEXTS[210]}
    with pytest.raises(InputError, match=r"x\.jsonl, line 211: 'text 210 .* is refused"):
        Warmer(encoder, report=stop).run([lines(TEXTS, 1)])
    assert len(encode(make_encoder(on_miss="raise"), TEXTS[:200])) == 200


def test_texts_without_a_key_are_left_out(
    make_encoder: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Lone surrogates, and what is no text at all: of a task's own code, say."""
    texts: list[Any] = ["a", "lone \ud800", "b", None, 5, "c"]
    for encoded in (3, 0):
        caplog.clear()
        encoder = make_encoder()
        stats = Warmer(encoder).run([lines(texts, 7), TextBatch(texts[3:5], "none")])
        assert (stats.encoded, stats.refused, stats.texts) == (encoded, 5, 3)
        assert "left out: x.jsonl, line 8: holds a lone surrogate, '\\ud800'" in caplog.text
        assert "left out: x.jsonl, line 11: is no text but int: 5" in caplog.text
        assert "left out: none: is no text but NoneType" in caplog.text
    assert len(encode(make_encoder(on_miss="raise"), ["a", "b", "c"])) == 3
    with pytest.raises(InputError, match="the prompt holds a lone surrogate"):
        Warmer(make_encoder()).run([lines(["a"], 1, prompt="\udc00")])


def test_a_stop_among_refused_texts(make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
    encoder = make_encoder()
    fake_engines[-1].refuse = set(TEXTS[::3])
    warmer = Warmer(
        encoder, lambda stats: warmer.stop.set() if stats.encoded else None, lambda row: None
    )
    encoder.open_pipeline().chunker.tokens = 200
    stats = warmer.run([lines([*TEXTS, *TEXTS], 1)])
    assert stats.stopped and stats.refused == 2 * len(TEXTS[::3])
    assert stats.texts == stats.encoded == stats.committed < 300 and stats.hits == 0


def test_an_encoder_that_cannot_write(make_encoder: Make) -> None:
    for kwargs in ({"cache_path": None}, {"read_only": True}, {"on_miss": "raise"}):
        with pytest.raises(CacheError, match="There is no cache to fill"):
            Warmer(make_encoder(**kwargs)).run(stream(TEXTS))
