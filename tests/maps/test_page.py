"""A page is what its maker wrote, whatever markup stands in the texts: an HTML parser reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from embcache.identity.keys import text_keys
from embcache.maps.draw import save_map
from embcache.maps.project import map_space
from embcache.store import Database, Rows
from tests.maps.test_draw import traces
from tests.spaces import IDENTITY

EVIL = [
    "</script><script>evil()</script>",
    "</SCRIPT ><img src=x onerror=evil()>",
    "<!--<script>",
    "--></title></head><body onload=evil()>",
    "]]></style><svg/onload=evil()>",
    "\" onmouseover=\"evil()' onfocus='evil()",
    "{{evil()}} {% evil %} ${evil()} %{evil} {evil} {0}",
    "<a href='javascript:evil()'>x</a>",
    "\u2028\u2029evil()\x00\x0b",
    "&lt;script&gt;evil()&lt;/script&gt;",
    "\\u003c/script\\u003e\\",
    "'); evil(); ('",
]


class Tags(HTMLParser):
    """The tags of a page with their attributes, and what its scripts and title hold."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[str]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, sorted(name for name, _ in attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:60]}")


def page_of(folder: Path, texts: list[str], name: str) -> str:
    """A page whose texts, prompts, tasks and model's name are all these."""
    space = Database(folder / "cache", writable=True).space(IDENTITY, name, name)
    vectors = np.random.default_rng(0).standard_normal((len(texts), 4)).astype(np.float32)
    columns = {"text": texts, "prompt": texts, "prompt_type": texts, "task": texts}
    identity = IDENTITY.to_bytes()
    keys = np.concatenate([text_keys(identity, text, [text]) for text in texts])
    space.add(Rows(keys, vectors, columns))
    return save_map(map_space(space), folder / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["/".join(EVIL[:2]), EVIL[5]])
def test_markup_makes_no_tag_and_no_attribute(name: str, tmp_path: Path) -> None:
    plain = Tags(page_of(tmp_path / "plain", [f"text {i}" for i in range(len(EVIL))], "model"))
    page = page_of(tmp_path / "evil", EVIL, name)
    found = Tags(page)
    assert found.tags == plain.tags and [tag for tag, _ in found.tags].count("script") > 1
    data, layout = traces(tmp_path / "evil" / "x.html")
    shown = json.dumps([[t["hovertext"] for t in data], [t["name"] for t in data], layout["title"]])
    without_breaks = shown.replace("<br>", "")
    assert "<" not in without_breaks and "&lt;" in without_breaks  # plotly takes some for markup
