"""What is looked at on every node, here by itself; on a real Ray in test_warmer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from embcache.cluster import preflight as module
from embcache.cluster.layout import Node
from embcache.cluster.preflight import preflight
from embcache.errors import ClusterError
from embcache.store import Location
from embcache.store.leftovers import TRIAL, remove_leftovers

A, B = Node("1", "a", 4, 0), Node("2", "b", 4, 0)
GOOD = {"executable": "/py", "embcache": "1", "engine": "vllm 1", "seen": True}


@pytest.fixture
def cache(tmp_path: Path) -> Location:
    (tmp_path / "cache").mkdir()
    return Location.of(str(tmp_path / "cache"))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the nodes a and b answer."""

    def set_(*answers: dict[str, Any]) -> list[Node]:
        nodes = [A, B][: len(answers)]
        found = list(zip(nodes, answers, strict=True))
        monkeypatch.setattr(module, "_asked", lambda *_: found)
        return nodes

    return set_


def examined(cache: Location, mark: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = module._examination()(cache.uri, {}, mark)
    return found


def test_nodes_that_are_alike(answer: Any, cache: Location) -> None:
    nodes = answer(GOOD, GOOD)
    assert preflight(nodes, cache, engine=True) == "vllm 1"
    assert list(Path(cache.uri).iterdir()) == []


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"embcache": None, "error": "ImportError: no embcache"},
            r"On host b, embcache cannot be imported by /py \(ImportError: no embcache\). Install",
        ),
        ({"embcache": "2"}, "different versions of embcache: a has 1, b has 2. .* the same on all"),
        ({"error": "read-only \x1b[2J"}, r"On host b, the cache .*cannot be used: read-only \\x1b"),
        ({"seen": False}, "Host b does not see the cache .*cache that is here: .* object store"),
    ],
)
def test_a_node_that_differs(
    answer: Any, cache: Location, other: dict[str, Any], message: str, engine: bool
) -> None:
    nodes = answer(GOOD, {**GOOD, **other})
    with pytest.raises(ClusterError, match=message):
        preflight(nodes, cache, engine=engine)
    assert list(Path(cache.uri).iterdir()) == []  # the mark is gone


def test_engines_that_differ(answer: Any, cache: Location) -> None:
    nodes = answer(GOOD, {**GOOD, "engine": "vllm 2"})
    with pytest.raises(ClusterError, match="versions of engine: a has vllm 1, b has vllm 2"):
        preflight(nodes, cache, engine=True)
    assert preflight(nodes, cache, engine=False) == "vllm 1"
    nodes = answer({**GOOD, "engine": None}, GOOD)
    with pytest.raises(ClusterError, match="versions of engine: a has None, b has vllm 1"):
        preflight(nodes, cache, engine=True)


def test_no_engine_anywhere(answer: Any, cache: Location) -> None:
    nodes = answer({**GOOD, "engine": None}, {**GOOD, "engine": None})
    with pytest.raises(ClusterError, match=r"vllm is not installed on a. Install it on every node"):
        preflight(nodes, cache, engine=True)
    assert preflight(nodes, cache, engine=False) is None


def test_the_mark_is_there_meanwhile_and_goes_with_an_error(cache: Location) -> None:
    with pytest.raises(ZeroDivisionError, match="zero"), module._marked(cache) as mark:
        [found] = Path(cache.uri).iterdir()
        assert found.name == mark and found.name.startswith(TRIAL)
        assert remove_leftovers(Path(cache.uri)) == []  # by another process of this cache
        print(1 // 0)
    assert list(Path(cache.uri).iterdir()) == []


def test_a_store_needs_no_mark() -> None:
    with module._marked(Location.of("s3://bucket/cache", {})) as mark:
        assert mark is None


def test_an_examination(cache: Location) -> None:
    with module._marked(cache) as mark:
        found = examined(cache, mark)
    assert found["seen"] and found["embcache"] and "error" not in found
    assert found["executable"] == sys.executable
    assert examined(cache, "another")["seen"] is False


def test_an_examination_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = examined(Location.of(str(tmp_path / "nowhere")), "mark")
    assert found["seen"] is False or "error" in found
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_examination_of_a_folder_that_cannot_be_written(cache: Location) -> None:
    Path(cache.uri).chmod(0o500)
    assert "error" in examined(cache)


def test_an_examination_of_what_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert "cache" in examined(Location.of(str(tmp_path / "cache")), "mark")["error"]


def test_an_examination_without_embcache(cache: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embcache.store", None)
    found = examined(cache)
    assert found["embcache"] is None and "ModuleNotFoundError" in found["error"]
