from __future__ import annotations

import sys
from types import ModuleType

import pytest

from embcache import ConfigError
from embcache.maps.project import check_extra, import_extra


def test_what_is_there() -> None:
    check_extra("json")
    assert import_extra("json.decoder") is sys.modules["json.decoder"]


@pytest.mark.parametrize(("library", "package"), [("umap", "umap-learn"), ("plotly", "plotly")])
def test_what_is_not(monkeypatch: pytest.MonkeyPatch, library: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    fix = rf"Run pip install '\.\[map\]' in a clone of embcache, or pip install {package}\.$"
    with pytest.raises(ConfigError, match=rf"needs {package}, which is not installed\. {fix}"):
        check_extra(library)
    with pytest.raises(ConfigError, match=rf"needs {package}, which cannot be imported.* {fix}"):
        import_extra(library)


def test_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", ModuleType("plotly"))  # without its parts
    monkeypatch.delitem(sys.modules, "plotly.graph_objects", raising=False)
    with pytest.raises(ConfigError, match=r"cannot be imported \(No module named 'plotly\.graph"):
        import_extra("plotly.graph_objects")
