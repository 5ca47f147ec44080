"""One way to name a space, in every command that takes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embcache import CacheError, ConfigError
from embcache.cli.app import app
from embcache.identity.identity import Identity
from embcache.tools.find import find_space, find_spaces
from tests.spaces import IDENTITY, folder, make_rows
from tests.tools.test_merge import space_in

OTHER = Identity("another/model", "1", "bfloat16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`cache/demo`, which holds one space; `cache` itself is no cache."""
    space_in(tmp_path / "cache" / "demo").add(make_rows(["a", "b", "c"], dim=4))
    monkeypatch.chdir(tmp_path)
    return Path("cache/demo")


def folder_of(cache: Path) -> Path:
    (path,) = cache.absolute().glob("*.lance")
    return path


def break_(path: Path) -> None:
    for manifest in (path / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize(
    "command",
    [
        ("show", "{}"),
        ("get", "{}", "a", "--prompt", "p: "),
        ("search", "{}", "a", "--fts"),
        ("compare", "{}", "{}"),
        ("export", "{}", "x.parquet"),
        ("map", "{}", "x.parquet"),
        ("check", "{}"),
        ("compact", "{}"),
        ("rm", "{}", "--yes"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_every_way(cache: Path, command: tuple[str, ...]) -> None:
    (path,) = cache.glob("*.lance")
    ways = [[str(cache)], [str(path)], ["organization", "--cache", str(cache)]]
    for space, *options in ways[:1] if command[0] == "rm" else ways:
        Path("x.parquet").unlink(missing_ok=True)
        arguments = [word.format(space) for word in command] + options
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_a_cache_with_several_spaces(cache: Path) -> None:
    space_in(cache, OTHER).add(make_rows(["a"], identity=OTHER))
    message = "'cache/demo' is not one space: 2 in .*cache/demo fit(?s:.*)another--model"
    with pytest.raises(ConfigError, match=message):
        find_space("cache/demo", Path("cache"))
    assert find_space("another", cache).metadata.identity == OTHER
    assert len(find_spaces(None, cache)) == 2 and len(find_spaces(["another"], cache)) == 1


def test_a_folder_that_is_called_like_a_model(cache: Path) -> None:
    """A model's own directory is no cache, and its name is a part of the space's."""
    Path("organization").mkdir()
    assert folder(find_spaces(["organization"], cache)[0]) == folder_of(cache)
    Path("nothing").mkdir()
    with pytest.raises(ConfigError, match=r"There is no space in .*nothing"):
        folder(find_spaces(["nothing"], cache)[0])


def test_a_cache_of_caches(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"no space in .*cache\. It holds caches: demo\."):
        find_space("organization", Path("cache"))


def test_a_folder_that_is_not_there(cache: Path) -> None:
    message = "No space in .*cache/demo is called 'cache/demo/x.lance'(?s:.*)organization--name"
    with pytest.raises(ConfigError, match=message):
        find_space("cache/demo/x.lance", Path("elsewhere"))
    with pytest.raises(CacheError, match="elsewhere does not exist"):
        find_space("x.lance", Path("elsewhere"))


def test_a_space_that_cannot_be_opened_has_a_folder(cache: Path) -> None:
    path = folder_of(cache)
    break_(path)
    for name in ("cache/demo", str(path), "organization"):
        assert folder(find_spaces([name], cache)[0]) == path
        with pytest.raises(CacheError, match=r"Opening .* failed"):
            find_space(name, cache)


def test_a_table_of_something_else(cache: Path) -> None:
    import lance
    import pyarrow as pa

    lance.write_dataset(pa.table({"x": [1]}), str(cache / "foreign.lance"))
    assert "foreign" not in [space.name for space in find_spaces(None, cache)]
    assert len(find_spaces(None, cache)) == 1
    with pytest.raises(ConfigError, match=r"foreign\.lance is a Lance table, and no space"):
        find_space("cache/demo/foreign.lance", cache)
    with pytest.raises(ConfigError, match=r"No space in .* is called 'foreign'"):
        find_space("foreign", cache)


def test_a_model_in_a_long_path_has_a_short_name(tmp_path: Path) -> None:
    long = "/a/very/long/way/to/a/folder/of/models/all-MiniLM-L6-v2"
    local = Identity("local", "0" * 32, "float32")
    from embcache.store import Database

    space = Database(tmp_path, writable=True).space(local, long, "vllm 1.0")
    space.add(make_rows(["a", "b", "c"], identity=local))
    assert space.name.startswith("models--all-MiniLM-L6-v2--float32--")

    def printed(*arguments: Any) -> str:
        return str(CliRunner().invoke(app, [str(each) for each in arguments]).stdout)

    assert " models/all-MiniLM-L6-v2 " in printed("ls", tmp_path)
    assert long not in printed("ls", tmp_path)
    lines = [line.split() for line in printed("show", tmp_path).splitlines()]
    assert ["model", "models/all-MiniLM-L6-v2"] in lines and ["model", "path", long] in lines
    assert json.loads(printed("show", tmp_path, "--json"))["model"] == long
    assert "model path" not in printed("show", space_path(tmp_path / "hub"))


def space_path(cache: Path) -> Path:
    space = space_in(cache)
    space.add(make_rows(["a"]))
    assert space.metadata.identity == IDENTITY
    return folder(space)
