"""A team's cache behind one's own, as the encoders take it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embcache import CachedEncoder, ConfigError, MissingTextsError, VllmEncoderWrapper
from embcache.cache import Cache
from embcache.encoders.upstreams import find_upstreams
from embcache.store import Database, Location
from embcache.store.compaction import FANOUT
from tests.conftest import encode, predict, run_python
from tests.fakes import Engines, FakeModel

Make = Callable[..., VllmEncoderWrapper]


def places(upstream: Any = None, **kwargs: Any) -> list[str]:
    kwargs = {"write": False, "database": None, **kwargs}
    return [cache.location.name for cache in find_upstreams(upstream, **kwargs)]


def test_one_or_several_in_their_order(tmp_path: Path) -> None:
    assert places(tmp_path / "a") == ["a"]
    assert places([str(tmp_path / "a"), Location.of(tmp_path / "b"), tmp_path / "a"]) == ["a", "b"]
    assert places() == places([]) == []


def test_the_environment_names_those_of_who_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBCACHE_UPSTREAM", f"{tmp_path}/a b, {tmp_path}/c,")
    assert places() == ["a b", "c"]
    assert places(tmp_path / "d") == ["d"] and places([]) == []
    monkeypatch.setenv("EMBCACHE_UPSTREAM", " ")
    assert places() == []
    monkeypatch.setenv("EMBCACHE_UPSTREAM", f"{tmp_path}/a,s3:/bucket/team")
    with pytest.raises(ConfigError, match="EMBCACHE_UPSTREAM='s3:/bucket/team' has lost a slash"):
        places()


def test_ones_own_cache_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    own = Database(tmp_path / "own", writable=False)
    found = find_upstreams([tmp_path / "link", tmp_path / "b"], write=True, database=own)
    assert [(one.location.name, one.write) for one in found] == [("b", True)]
    assert places(tmp_path / "own", write=True, database=own) == []


def test_only_the_first_is_written(tmp_path: Path) -> None:
    found = find_upstreams([tmp_path / "a", tmp_path / "b"], write=True, database=None)
    assert [one.write for one in found] == [True, False]


@pytest.mark.parametrize(
    ("upstream", "said"),
    [
        ("", r"upstream='' is no place of a cache.*upstream=\[\]"),
        (["a", ""], "upstream='' is no place of a cache"),
        (5, "upstream=5 is no place of a cache"),
        ([None], "upstream=None is no place of a cache"),
    ],
)
def test_nonsense_is_refused_at_construction(make_encoder: Make, upstream: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_encoder(upstream=upstream)
    with pytest.raises(ConfigError, match=said):
        CachedEncoder(FakeModel(), upstream=upstream, cache_path=None)


def test_an_upstream_that_is_to_be_written_must_be_named(make_encoder: Make) -> None:
    with pytest.raises(ConfigError, match="upstream_write=True, and there is no upstream"):
        make_encoder(upstream_write=True)


def test_a_laptop_replays_what_a_cluster_computed(
    make_encoder: Make, fake_engines: Engines, tmp_path: Path
) -> None:
    cluster = make_encoder(
        cache_path=tmp_path / "node", upstream=tmp_path / "team", upstream_write=True
    )
    vectors = encode(cluster, ["a", "b", "c"])
    laptop = make_encoder(upstream=tmp_path / "team", on_miss="raise")
    assert encode(laptop, ["c", "a"]).tobytes() == vectors[[2, 0]].tobytes()
    assert (laptop.stats.hits, laptop.stats.upstream, laptop.stats.encoded) == (2, 2, 0)
    assert laptop.total.upstream == 2
    again = make_encoder(on_miss="raise")
    assert encode(again, ["a", "c"]).tobytes() == vectors[[0, 2]].tobytes()
    assert again.stats.upstream == 0
    with pytest.raises(MissingTextsError, match=r"1 of 1 texts are not cached in .*cache"):
        encode(again, ["b"])
    assert not any(engine.starts for engine in fake_engines[1:])


def commit_one_by_one(make_encoder: Make, tmp_path: Path, texts: int, **kwargs: Any) -> int:
    """How many fragments the upstream has afterwards."""
    encoder = make_encoder(upstream=tmp_path / "team", upstream_write=True, **kwargs)
    for i in range(texts):
        encode(encoder, [f"text {i}"])
    for thread in threading.enumerate():
        if thread.name == "embcache-compactor":
            thread.join(30)
    [space] = Database(tmp_path / "team", writable=False).spaces()
    return len(space.open().fragments)


def test_many_small_writes_leave_an_upstream_small(make_encoder: Make, tmp_path: Path) -> None:
    assert commit_one_by_one(make_encoder, tmp_path, 2 * FANOUT) < FANOUT


def test_an_upstream_is_not_compacted_by_who_does_not_want_it(
    make_encoder: Make, tmp_path: Path
) -> None:
    fragments = commit_one_by_one(make_encoder, tmp_path, FANOUT, compact_automatically=False)
    assert fragments == FANOUT


def test_read_only_writes_nothing_anywhere(
    make_encoder: Make, fake_engines: Engines, tmp_path: Path
) -> None:
    encode(make_encoder(cache_path=tmp_path / "team"), ["a"])
    reader = make_encoder(upstream=tmp_path / "team", upstream_write=True, read_only=True)
    assert len(encode(reader, ["a", "b"])) == 2
    assert (reader.stats.upstream, reader.stats.encoded) == (1, 1)
    assert not (tmp_path / "cache").exists()
    assert Cache(tmp_path / "team").space().describe().rows == 1


def test_the_environment_reaches_the_encoders(
    make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(make_encoder(cache_path=tmp_path / "team"), ["a"])
    monkeypatch.setenv("EMBCACHE_UPSTREAM", str(tmp_path / "team"))
    reader = make_encoder()
    encode(reader, ["a"])
    assert reader.stats.upstream == 1


def test_auto_is_what_an_upstream_holds(
    make_encoder: Make, fake_engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embcache.identity.dtype.vllm_version", lambda: None)
    encode(make_encoder(cache_path=tmp_path / "team", dtype="float32"), ["a"])
    for own in (tmp_path / "cache", None):
        reader = make_encoder(dtype="auto", upstream=tmp_path / "team", cache_path=own)
        encode(reader, ["a"])
        assert reader.identity.dtype == "float32" and reader.stats.upstream == 1
        assert fake_engines[-1].starts == 0


def test_a_missing_upstream_costs_one_warning(
    make_encoder: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = make_encoder(upstream=tmp_path / "nowhere")
        encode(encoder, ["a"])
        encode(encoder, ["b"])
    assert [r.getMessage() for r in caplog.records if "nowhere" in r.getMessage()] == [
        f"The upstream cache {tmp_path / 'nowhere'} is not used, and the run goes on without: it "
        "does not exist, or cannot be seen from here. It is tried again in 10 minutes."
    ]
    assert encoder.total.encoded == 2


def test_scores_of_a_cross_encoder(make_cross_encoder: Callable[..., Any], tmp_path: Path) -> None:
    scores = predict(make_cross_encoder(cache_path=tmp_path / "team"), ["q", "q"], ["a", "b"])
    reader = make_cross_encoder(upstream=tmp_path / "team", on_miss="raise")
    assert predict(reader, ["q", "q"], ["b", "a"]).tobytes() == scores[::-1].tobytes()
    assert reader.stats.upstream == 2


def test_a_cached_encoder(tmp_path: Path, task: Any) -> None:
    encode(CachedEncoder(FakeModel(), cache_path=tmp_path / "team"), ["a", "b"])  # type: ignore[arg-type]
    model = FakeModel()
    encoder: Any = CachedEncoder(model, tmp_path / "cache", upstream=tmp_path / "team")
    encode(encoder, ["b", "a", "c"])
    assert model.encoded == ["c"] and encoder.stats.upstream == 2
    assert encoder.stats.hits == 2
    writer: Any = CachedEncoder(
        FakeModel(), tmp_path / "cache", upstream=tmp_path / "team", upstream_write=True
    )
    encode(writer, ["c", "d"])
    assert Cache(tmp_path / "team").space().describe().rows == 3  # "c" was a hit here


def test_nothing_found_upstream_imports_vllm(
    tiny_model: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encode(make_encoder(cache_path=tmp_path / "team"), ["a"])
    code = f"""
from tests.conftest import encode
from embcache import VllmEncoderWrapper
encoder = VllmEncoderWrapper(
    {str(tiny_model)!r},
    dtype="float32",
    upstream={str(tmp_path / "team")!r},
    cache_path={str(tmp_path / "cache")!r},
)
print(encode(encoder, ["a"]).shape, encoder.stats.upstream)
"""
    assert run_python(code, blocked=("vllm",)) == "(1, 8) 1\n"
