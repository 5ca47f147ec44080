"""The object that a user starts from: what the commands do, from Python."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import pytest

from embcache import (
    Cache,
    CachedSpace,
    CacheError,
    ConfigError,
    MissingTextsError,
    VllmEncoderWrapper,
)
from embcache.store import Space
from tests.conftest import encode, run_python
from tests.spaces import IDENTITY, folder, make_rows
from tests.store.test_damage import data_files, flip_bit
from tests.tools.test_merge import OTHER, space_in

TEXTS = [f"text {i}" for i in range(30)]


@pytest.fixture
def space(tmp_path: Path) -> Space:
    """30 texts, in `tmp_path`/cache."""
    made = space_in(tmp_path / "cache")
    made.add(make_rows(TEXTS, dim=32))
    return made


@pytest.fixture
def cache(space: Space, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_its_spaces(cache: Cache, space: Space, tmp_path: Path) -> None:
    space_in(tmp_path / "cache", OTHER).add(make_rows(["a"], identity=OTHER))
    assert [one.name.split("--")[0] for one in cache] == ["another", "organization"]
    assert len(cache) == 2 and [one.name for one in cache.spaces()] == [one.name for one in cache]
    assert cache["organization"].name == cache.space(space.name).name == space.name
    with pytest.raises(ConfigError, match="is not one space: 2"):
        cache.space()
    with pytest.raises(ConfigError, match="is called 'nothing'"):
        cache.space("nothing")


def test_what_a_space_is(cache: Cache, space: Space) -> None:
    one = cache.space()
    assert (one.model, one.identity, one.kind, len(one)) == (
        IDENTITY.model,
        IDENTITY,
        "vectors",
        30,
    )
    assert lance.dataset(str(one.location)).count_rows() == 30
    assert one.describe().rows == 30


def test_it_says_what_it_is_in_a_notebook(cache: Cache, space: Space, tmp_path: Path) -> None:
    assert repr(cache) == f"<Cache {tmp_path / 'cache'}: 1 table>\n  {space.name}"
    assert repr(cache.space()) == f"<CachedSpace {space.name}: 30 vectors of organization/name>"
    assert repr(Cache(tmp_path / "x")) == f"<Cache {tmp_path / 'x'}: no such directory>"


def test_no_such_cache(tmp_path: Path) -> None:
    for look in (lambda: Cache(tmp_path / "x").spaces(), lambda: Cache(tmp_path / "x").space()):
        with pytest.raises((CacheError, ConfigError), match=r"does not exist|[Nn]o space"):
            look()
    assert not (tmp_path / "x").exists()


def test_a_text_and_its_neighbours(cache: Cache) -> None:
    one, rows = cache.space(), make_rows(TEXTS, dim=32)
    assert one.get("text 3", "p: ").value.tobytes() == rows.values[3].tobytes()
    with pytest.raises(MissingTextsError, match=r"with prompt '', but with: 'p: '"):
        one.get("text 3")
    found = one.search("text 3", "p: ", 5)
    assert len(found) == 5 and "text 3" not in [match.text for match in found]
    assert [match.score for match in found] == sorted((m.score for m in found), reverse=True)
    (itself,) = one.search(rows.values[3], count=1)
    assert itself.text == "text 3" and itself.score == pytest.approx(1)
    assert [match.text for match in one.search_words("7", 1)] == ["text 7"]


def test_a_text_that_is_not_cached(cache: Cache) -> None:
    one = cache.space()
    with pytest.raises(MissingTextsError, match="'new' is not in"):
        one.search("new", on_miss="raise")
    with pytest.raises(MissingTextsError, match="but with: 'p: '"):
        one.search("text 3")  # cached with a prompt, and none was given


def test_a_new_text_is_embedded_as_the_space_was(
    make_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path
) -> None:
    encode(make_encoder(), ["a", "b c", "d"])
    one = Cache(tmp_path / "cache").space()
    found = one.search("b", count=3)
    assert {match.text for match in found} == {"a", "b c", "d"} and len(one) == 3


def test_pairs(scores: Space, tmp_path: Path) -> None:
    one = Cache(tmp_path / "cache").space()
    assert one.kind == "scores" and len(one) == 2
    assert one.get_pair("a", "c", "q: ").value.tolist() == [0.25]


def test_looking_after_it(cache: Cache, space: Space) -> None:
    one, rows = cache.space(), make_rows(TEXTS, dim=32)
    assert one.check().ok
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(rows.values[4].tobytes()) + 2)
    assert not one.check().ok
    assert one.check(fix=True).deleted == 1 and one.check().ok
    assert one.compact(older_than=timedelta(0)).fragments_after == 1
    one.remove()
    assert len(cache) == 0 and not folder(space).exists()


def test_in_and_out(cache: Cache, tmp_path: Path) -> None:
    one = cache.space()
    assert one.export(tmp_path / "x.parquet").rows == 30
    other = Cache(tmp_path / "other")
    assert other.import_file(tmp_path / "x.parquet").added == 30
    assert other.space().compare(one).cosine_min == 1.0
    assert Cache(tmp_path / "third").merge(other).added == 30
    assert other.merge(tmp_path / "third").added == 0


def test_maps(cache: Cache, tmp_path: Path) -> None:
    drawn = cache.space().map(tmp_path / "map.parquet", limit=20)
    assert len(drawn.xy) == 20 and (tmp_path / "map.parquet").is_file()
    assert cache.space().map(limit=10).xy.shape == (10, 2)
    with pytest.raises(ConfigError, match=r"x\.pdf ends in none of"):
        cache.space().map(tmp_path / "x.pdf")


def test_looking_needs_neither_mteb_nor_an_engine(cache: Cache, tmp_path: Path) -> None:
    code = (
        f"from embcache import Cache; print(Cache({str(tmp_path / 'cache')!r}).space()"
        ".get('text 1', 'p: ').value.shape, 'vllm' in sys.modules)"
    )
    assert run_python(code, blocked=("mteb", "torch", "typer")) == "(32,) False\n"


def test_a_space_of_a_user_is_made_by_cache(space: Space) -> None:
    found = CachedSpace(space).get("text 0", "p: ")
    assert (found.value == make_rows(TEXTS, 32).values[0]).all() and found.n_tokens == 0
