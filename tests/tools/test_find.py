"""Which space is meant: names, parts of names, folders, and what is said where none is."""

from __future__ import annotations

import time
from pathlib import Path

import lancedb
import pytest

from embcache import CacheError, ConfigError, UnreachableError
from embcache.identity.identity import Identity
from embcache.store import Location, Space
from embcache.tools.find import find_space, find_spaces
from tests.object_store import Remote
from tests.spaces import IDENTITY, folder, make_rows
from tests.tools.test_merge import space_in

OTHER = Identity("organization/name", "0" * 40, "bfloat16")


@pytest.fixture
def spaces(tmp_path: Path) -> list[Space]:
    """Two of one model, in `tmp_path`/cache."""
    made = [space_in(tmp_path / "cache", identity) for identity in (IDENTITY, OTHER)]
    for space in made:
        space.add(make_rows(["a"], identity=space.identity))
    return made


def test_by_name_or_a_part_of_it(spaces: list[Space], tmp_path: Path) -> None:
    for space in spaces:
        dtype, fingerprint = space.identity.dtype, space.identity.fingerprint()
        for name in (
            space.name,
            f"{space.name}.lance",
            fingerprint,
            dtype.upper(),
            f"-{dtype[:-1]}",
        ):
            assert find_space(name, tmp_path / "cache").name == space.name


def test_by_folder(spaces: list[Space], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for space in spaces:
        path = folder(space)
        for given in (path, str(path), f"{path}/", Path("cache") / path.name):
            assert find_space(given, "elsewhere").name == space.name


def test_a_cache_with_one_space_stands_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_in(tmp_path / "demo")
    space.add(make_rows(["a"]))
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / "demo", "demo", "demo/", Path("demo")):
        assert find_space(given).name == space.name


def test_a_cache_with_several_spaces(spaces: list[Space], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache' is not one space: 2 in .* fit") as caught:
        find_space(tmp_path / "cache", tmp_path / "cache")
    assert all(f"\n  {space.name}" in str(caught.value) for space in spaces)
    assert [one.name for one in find_spaces(None, tmp_path / "cache")] == sorted(
        space.name for space in spaces
    )


def test_several_fit(spaces: list[Space], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'organ' is not one space: 2 in .* fit") as caught:
        find_space("organ", tmp_path / "cache")
    assert all(f"\n  {space.name}" in str(caught.value) for space in spaces)


def test_none_fits(spaces: list[Space], tmp_path: Path) -> None:
    for name in ("none", "none.lance", ""):
        with pytest.raises(ConfigError, match=rf"No space in .* is called '{name}'") as caught:
            find_space(name, tmp_path / "cache")
        assert all(f"\n  {space.name}" in str(caught.value) for space in spaces)


def test_no_space_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"There is no space in .*empty\. Name the cache with"):
        find_space("name", tmp_path / "empty")
    with pytest.raises(CacheError, match="does not exist"):
        find_space("name", tmp_path / "missing")
    for name in ("vectors.npy", "index.json"):
        (tmp_path / "empty" / name).write_text("")
    with pytest.raises(ConfigError, match="It is a NumpyCache of mteb's"):
        find_space(tmp_path / "empty", tmp_path / "missing")


def test_a_lance_table_of_somebody_else(tmp_path: Path) -> None:
    lancedb.connect(str(tmp_path)).create_table("other", [{"x": 1}])
    with pytest.raises(ConfigError, match=r"other\.lance is a Lance table, and no space"):
        find_space(tmp_path / "other.lance")
    with pytest.raises(ConfigError, match="There is no space in"):
        find_space("other", tmp_path)


def test_a_broken_space_is_a_candidate_too(spaces: list[Space], tmp_path: Path) -> None:
    """Else `rm` would take the one that is sound for the one that was meant."""
    broken, other = spaces
    for manifest in (folder(broken) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    assert find_space("bfloat16", tmp_path / "cache").name == other.name
    for given in (str(folder(broken)), broken.name, "--float32--"):
        with pytest.raises(CacheError, match=r"Opening .* failed"):
            find_space(given, tmp_path / "cache")
        assert find_spaces([given], tmp_path / "cache")[0].name == broken.name
    with pytest.raises(ConfigError, match="'organ' is not one space: 2"):
        find_space("organ", tmp_path / "cache")


@pytest.fixture
def far(remote: Remote) -> list[Space]:
    """The same two as `spaces`, in a store."""
    place = Location.of(remote.url, remote.options)
    made = [space_in(place, identity) for identity in (IDENTITY, OTHER)]
    for space in made:
        space.add(make_rows(["a"], identity=space.identity))
    return made


def test_a_url_names_a_table_as_a_path_does(far: list[Space], remote: Remote) -> None:
    options = {"storage_options": remote.options}
    for space in far:
        url = f"{remote.url}/{space.name}.lance"
        assert str(space.location) == url
        ways = [(url, "elsewhere"), (f"{url}/", "elsewhere"), (f"{space.name}.lance", remote.url)]
        for given, cache in [*ways, (space.identity.fingerprint(), remote.url)]:
            for found in (
                find_space(given, cache, **options),
                *find_spaces([given], cache, **options),
            ):
                assert found.location == space.location
                assert found.location.storage_options == remote.options
    assert len(find_spaces(None, remote.url, **options)) == 2


def test_a_url_of_a_cache(far: list[Space], remote: Remote) -> None:
    options = {"storage_options": remote.options}
    with pytest.raises(ConfigError, match=f"'{remote.url}' is not one space: 2 in {remote.url}"):
        find_space(remote.url, "elsewhere", **options)
    far[1].location.remove()
    assert find_space(remote.url, "elsewhere", **options).name == far[0].name


def test_a_url_that_leads_nowhere(far: list[Space], remote: Remote) -> None:
    """It is no part of a name: no other cache is looked into."""
    options = {"storage_options": remote.options}
    message = rf"No space in {remote.url} is called '{remote.url}/x\.lance'(?s:.*)--float32--"
    with pytest.raises(ConfigError, match=message):
        find_space(f"{remote.url}/x.lance", "elsewhere", **options)
    with pytest.raises(CacheError, match="/none does not exist"):
        find_space(f"{remote.url}/none", "elsewhere", **options)


@pytest.mark.parametrize("given", ["{}/x.lance", "{}", "x.lance", "x"])
def test_a_store_that_does_not_let_one_in(given: str, remote: Remote) -> None:
    """It is said at once, without the patience that a run has with a store."""
    secret = "wrong-and-hush"
    options = {**remote.options, "aws_secret_access_key": secret}
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="The secret key is not that of") as caught:
        find_space(given.format(remote.url), remote.url, storage_options=options)
    assert time.monotonic() - began < 10 and secret not in str(caught.value)
