"""What a store needs to be opened reaches every call that opens one, and is seen nowhere else."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mteb.models import ModelMeta

from embcache import (
    Cache,
    CachedEncoder,
    ConfigError,
    Identity,
    LanceCache,
    UnreachableError,
    VllmCrossEncoderWrapper,
    VllmEncoderWrapper,
)
from embcache.encoders.arguments import CacheArguments
from embcache.store import Database, Location
from embcache.tools.export import export_space
from embcache.tools.find import find_space, find_spaces
from embcache.tools.import_ import import_file, import_numpy_cache
from embcache.tools.merge import merge_caches
from embcache.tools.transfer import transfer
from tests.conftest import encode, predict
from tests.fakes import Engines, FakeModel
from tests.object_store import Remote
from tests.spaces import IDENTITY, make_rows
from tests.tools.test_merge import space_in

SECRET = "hush-hush-5a1f"
OPTIONS = {"aws_secret_access_key": SECRET, "aws_region": "eu-west-1"}
URL = "s3://bucket/cache"

Opened = list[dict[str, str]]


@pytest.fixture
def make(
    make_encoder: Callable[..., Any], make_cross_encoder: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    """One of what takes a cache and writes to it, by name."""

    def make_(kind: str, place: Any = tmp_path / "cache", **kwargs: Any) -> Any:
        if kind == "LanceCache":
            return LanceCache(place, **kwargs)
        if kind == "CachedEncoder":
            return CachedEncoder(FakeModel(), place, **kwargs)
        maker = make_encoder if kind == "VllmEncoderWrapper" else make_cross_encoder
        return maker(cache_path=place, **kwargs)

    return make_


def use(encoder: Any) -> None:
    """Look something up, write it, and look it up again."""
    for _ in range(2):
        if isinstance(encoder, LanceCache):
            encoder.add([{"text": "a"}], [[1.0, 2.0]])
            encoder.close()
            assert encoder.get_vector({"text": "a"}) is not None
        elif isinstance(encoder, VllmCrossEncoderWrapper):
            predict(encoder, ["a"], ["b"])
        else:
            encode(encoder, ["a", "b"])


KINDS = ("VllmEncoderWrapper", "VllmCrossEncoderWrapper", "CachedEncoder", "LanceCache")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """URLs that are asked for a place, with their options; where they lead is not looked at."""
    seen: list[tuple[str, Any]] = []
    of = Location.of

    def instead(path: Any, options: Any = None, **kwargs: Any) -> Location:
        if "s3:" not in str(path) or isinstance(path, Location):
            return of(path, options, **kwargs)
        seen.append((path, options))
        raise ConfigError("asked")

    monkeypatch.setattr(Location, "of", instead)
    yield seen


@every_kind
def test_they_open_what_is_read_and_written(
    kind: str, make: Callable[..., Any], opened_with: Opened
) -> None:
    use(make(kind, storage_options=OPTIONS))
    assert opened_with and all(options == OPTIONS for options in opened_with)


@every_kind
def test_they_are_seen_nowhere(
    kind: str, make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    encoder = make(kind, storage_options=OPTIONS)
    use(encoder)
    shown = [repr(encoder), caplog.text]
    if kind.startswith("Vllm"):
        shown += [repr(encoder.identity), encoder.identity.to_json()]
    if kind != "LanceCache":
        meta = encoder.mteb_model_meta
        shown += [repr(meta), meta.model_dump_json(exclude={"loader"}), str(meta.experiment_name)]
    cache = Cache(tmp_path / "cache", OPTIONS)
    shown += [repr(cache), repr(cache.location), *map(repr, cache)]
    shown += [repr(one.describe()) + one.identity.to_json() for one in cache]
    assert SECRET not in "\n".join(shown)
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written and not any(SECRET.encode() in path.read_bytes() for path in written)


@every_kind
def test_they_are_in_no_identity(kind: str, make: Callable[..., Any], tmp_path: Path) -> None:
    use(make(kind))
    use(make(kind, storage_options=OPTIONS))
    assert len(Cache(tmp_path / "cache")) == 1


@every_kind
def test_a_value_that_is_no_text(kind: str, make: Callable[..., Any]) -> None:
    wrong: Any = {"aws_secret_access_key": [SECRET]}
    with pytest.raises(ConfigError, match=r"storage_options\['aws_secret_access_key'\] ") as error:
        make(kind, storage_options=wrong)
    assert SECRET not in str(error.value)


@every_kind
def test_a_url_arrives_as_it_is(
    kind: str, make: Callable[..., Any], asked: list[tuple[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match="asked"):
        make(kind, URL, storage_options=OPTIONS)
    assert asked == [(URL, OPTIONS)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"secret": 5, "other": SECRET}, r"storage_options\['secret'\] "),
        ({"secret": SECRET.encode()}, r"storage_options\['secret'\] "),
        ({"secret": None}, r"storage_options\['secret'\] "),
        ({5: SECRET}, r"storage_options\[5\] "),
        ([("secret", SECRET)], "storage_options is a list"),
        (f"secret={SECRET}", "storage_options is a str. Give a dict"),
    ],
    ids=repr,
)
def test_what_is_no_text_by_name(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Location.of("cache", given)
    assert SECRET not in str(caught.value)


def test_a_location_keeps_a_copy() -> None:
    given = dict(OPTIONS)
    place = Location.of("cache", given)
    given.clear()
    assert place.storage_options == OPTIONS
    assert Location.of("cache", None).storage_options == {}


@every_kind
def test_in_a_real_store(
    kind: str, make: Callable[..., Any], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    secret = remote.options["aws_secret_access_key"]
    encoder = make(kind, remote.url, storage_options=remote.options)
    use(encoder)
    cache = Cache(remote.url, remote.options)
    assert len(cache) == 1 and remote.url in repr(cache)
    assert secret not in repr(encoder) + repr(cache)
    wrong = {**remote.options, "aws_secret_access_key": SECRET}
    with pytest.raises(UnreachableError, match="The secret key is not that of") as error:
        make(kind, remote.url, storage_options=wrong)
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_arguments_hide_them() -> None:
    assert SECRET not in repr(CacheArguments(storage_options=OPTIONS))


@pytest.mark.parametrize("name", ["storage_option", "storage_optons"])
def test_a_misspelt_name(name: str, make: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="Is storage_options meant") as error:
        make("VllmEncoderWrapper", **{name: OPTIONS})
    assert SECRET not in str(error.value)


def test_mteb_notes_what_it_loads_a_model_with(
    tiny_model: Path, tmp_path: Path, fake_engines: Engines
) -> None:
    """Keyword arguments of `load_model` stand in the ModelMeta, which mteb writes to files."""
    names = {"name": str(tiny_model), "loader": VllmEncoderWrapper}
    meta = ModelMeta.create_empty(overwrites=names)
    for more in ({}, {"max_model_len": 9}):
        given: Any = {"storage_options": OPTIONS, "dtype": "float32", "make_engine": None}
        encoder: Any = meta.load_model(cache_path=str(tmp_path / "cache"), **given, **more)
        kept = encoder.mteb_model_meta
        assert SECRET not in repr(kept) + kept.model_dump_json(exclude={"loader"})
        assert kept.experiment_kwargs["dtype"] == "float32"
        assert kept.experiment_kwargs.get("max_model_len") == more.get("max_model_len")
        assert kept.loader_kwargs["cache_path"] == str(tmp_path / "cache")
    alone: Any = meta.load_model(storage_options=OPTIONS, cache_path=None)
    assert SECRET not in repr(alone.mteb_model_meta)


def test_a_cache_hands_them_to_all_that_it_does(
    tmp_path: Path, opened_with: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    space_in(tmp_path / "cache").add(make_rows(["a", "b"]))
    space_in(tmp_path / "other").add(make_rows(["c"]))
    opened_with.clear()
    cache = Cache(tmp_path / "cache", OPTIONS)
    cache.merge(tmp_path / "other", OPTIONS)
    cache.merge(Cache(tmp_path / "other", OPTIONS))
    cache.pull(tmp_path / "other", storage_options=OPTIONS)
    cache.push(tmp_path / "third", storage_options=OPTIONS)
    (one,) = cache
    for found in (one, cache.space(), cache["organization"]):
        assert found.location.storage_options == OPTIONS
    assert len(one) == 3 and one.check(fix=True).ok
    one.compact()
    one.describe()
    one.compare(one)
    one.get("a", "p: ")
    one.search("a", "p: ", on_miss="raise")
    one.search_words("a")
    one.export(tmp_path / "x.parquet")
    cache.import_file(tmp_path / "x.parquet")
    assert opened_with and all(options == OPTIONS for options in opened_with)


def test_the_encoder_that_is_made_again_for_a_space(
    make: Callable[..., Any], tmp_path: Path, opened_with: Opened
) -> None:
    encode(make("VllmEncoderWrapper"), ["a"])
    one = Cache(tmp_path / "cache", OPTIONS).space()
    opened_with.clear()
    assert len(one.search("not cached", count=1)) == 1
    assert opened_with and all(options == OPTIONS for options in opened_with)
    with pytest.raises(ConfigError, match="storage_options is no argument of the engine") as error:
        one.search("not cached", storage_options=OPTIONS)
    assert SECRET not in str(error.value)


def test_tools_take_them(tmp_path: Path, opened_with: Opened) -> None:
    space = space_in(tmp_path / "cache")
    space.add(make_rows(["a"]))
    export_space(space, tmp_path / "x.parquet")
    opened_with.clear()
    cache, other = tmp_path / "cache", tmp_path / "other"
    for name in ("organization", str(space.location), str(cache)):
        found = find_space(name, cache, storage_options=OPTIONS)
        assert found.location.storage_options == OPTIONS
        (found,) = find_spaces([name], cache, storage_options=OPTIONS)
        assert found.location.storage_options == OPTIONS
    (found,) = find_spaces(None, cache, storage_options=OPTIONS)
    assert found.location.storage_options == OPTIONS
    merge_caches(cache, other, storage_options=OPTIONS)
    transfer(cache, other, storage_options=OPTIONS)
    import_file(tmp_path / "x.parquet", other, storage_options=OPTIONS)
    assert opened_with and all(options == OPTIONS for options in opened_with)


def test_each_cache_of_a_merge_may_have_its_own(tmp_path: Path, opened_with: Opened) -> None:
    space_in(tmp_path / "cache").add(make_rows(["a"]))
    opened_with.clear()
    target = Location.of(tmp_path / "other", {"aws_region": "there"})
    merge_caches(tmp_path / "cache", target, storage_options=OPTIONS)
    assert {*map(json.dumps, opened_with)} == {
        json.dumps(OPTIONS),
        json.dumps({"aws_region": "there"}),
    }


def test_tools_take_urls_as_they_are(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    space = space_in(tmp_path / "cache")
    space.add(make_rows(["a"]))
    export_space(space, tmp_path / "x.parquet")
    calls: list[Callable[[], Any]] = [
        lambda: Database(URL, OPTIONS, writable=True),
        lambda: Cache(URL, OPTIONS),
        lambda: find_space("x", URL, storage_options=OPTIONS),
        lambda: find_space(URL, tmp_path / "none", storage_options=OPTIONS),
        lambda: find_spaces([URL], tmp_path / "none", storage_options=OPTIONS),
        lambda: find_spaces(None, URL, storage_options=OPTIONS),
        lambda: merge_caches(URL, tmp_path, storage_options=OPTIONS),
        lambda: merge_caches(tmp_path / "cache", URL, storage_options=OPTIONS),
        lambda: transfer(URL, tmp_path, storage_options=OPTIONS),
        lambda: transfer(tmp_path / "cache", URL, storage_options=OPTIONS),
        lambda: Cache(tmp_path).merge(URL, OPTIONS),
        lambda: Cache(tmp_path).push(URL, storage_options=OPTIONS),
        lambda: Cache(tmp_path).pull(URL, storage_options=OPTIONS),
        lambda: import_file(tmp_path / "x.parquet", URL, storage_options=OPTIONS),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="asked"):
            call()
        assert asked == [(URL, OPTIONS)]
        asked.clear()


def test_a_numpy_cache_into_a_url(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "dimension").write_text("2")
    (tmp_path / "vectors.npy").write_bytes(bytes(8))
    identity = Identity("organization/name", "0" * 40, "float32")
    assert identity == IDENTITY
    with pytest.raises(ConfigError, match="asked"):
        import_numpy_cache(tmp_path, URL, identity, ["a"], storage_options=OPTIONS)
    assert asked == [(URL, OPTIONS)]
