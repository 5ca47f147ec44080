from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from embcache import CacheError, ConfigError, SpaceMap
from embcache.identity.keys import text_keys
from embcache.maps.draw import save_map
from embcache.maps.page import hover_texts
from embcache.maps.project import map_space
from embcache.store import Database, Rows
from tests.maps.test_project import clusters
from tests.spaces import IDENTITY, make_rows
from tests.tools.test_merge import space_in

HOSTILE = "</script><script>alert(1)</script> <b>bold</b> & &lt; $x^2$ %{x} <br> \" ' \x00 "
PROMPT = "$x_1$ <b>多语言</b> & $y: "


@pytest.fixture
def cats_and_dogs(tmp_path: Path) -> SpaceMap:
    return map_space(clusters(tmp_path / "cache"))


@pytest.fixture
def hostile(tmp_path: Path) -> SpaceMap:
    """Markup and formulas in the texts, in a prompt and in the model's name."""
    model = "a/$very$<b>/" + "long/" * 30 + "na$me$ <i>"
    space = Database(tmp_path / "cache", writable=True).space(IDENTITY, model, "vllm 1.0")
    texts = [f"{HOSTILE} {i} {'word ' * 100 * i}" for i in range(4)]
    keys = text_keys(IDENTITY.to_bytes(), PROMPT, texts)
    columns = {"text": texts, "prompt": PROMPT, "task": "T<b>"}
    space.add(Rows(keys, make_rows(texts).values, columns))
    return map_space(space)


def traces(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Traces and layout of a page, as its script has them."""
    page = file.read_text(encoding="utf-8")
    at = page.index("[", page.rindex("Plotly.newPlot("))
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(page, at)
    layout, _ = decoder.raw_decode(page, page.index("{", end))
    return data, layout


def test_a_page_has_a_trace_for_each_colour(tmp_path: Path, cats_and_dogs: SpaceMap) -> None:
    data, layout = traces(save_map(cats_and_dogs, tmp_path / "x.html"))
    assert [trace["type"] for trace in data] == ["scattergl"] * 2
    assert sorted(trace["name"] for trace in data) == ["'cat: ' (100)", "'dog: ' (100)"]
    for trace in data:
        animal = trace["name"][1:4]
        assert len(trace["hovertext"]) == 100 and trace["hoverinfo"] == "text"
        assert all(text.startswith(f"{animal} ") for text in trace["hovertext"])
        assert f"<br>prompt: '{animal}: '<br>" in trace["hovertext"][0]
        assert "task: 'Animals'<br>n_tokens: " in trace["hovertext"][0]
    assert layout["title"]["text"] == "organization/name, float32"
    assert layout["title"]["subtitle"]["text"].startswith("200 of 200 rows, PCA: the axes show ")


def test_a_page_loads_and_sends_nothing(tmp_path: Path, hostile: SpaceMap) -> None:
    page = save_map(hostile, tmp_path / "x.html").read_text(encoding="utf-8")
    assert not re.search(
        r"<script[^>]*\ssrc|<link|<img|<iframe|@import", page.split("Plotly.js")[0]
    )
    assert not re.search(r"<script[^>]*\ssrc=|<link[^>]*\shref=", page)
    assert "default-src 'none'" in page and '"showSendToCloud": false' in page
    assert len(page) > 3_000_000  # plotly is inside


def test_hostile_texts_stay_texts(tmp_path: Path, hostile: SpaceMap) -> None:
    file = save_map(hostile, tmp_path / "x.html")
    page = file.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page and "<b>bold" not in page
    assert "<title>long/na$me$ &lt;i&gt;, float32</title>" in page
    (trace,), layout = traces(file)
    shown = trace["hovertext"][0]
    assert shown.replace("<br>", " ").startswith(
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &lt;b&gt;bold&lt;/b&gt; &amp;"
    )
    assert "&amp;lt;" in shown and "$x^2$ %{x} &lt;br&gt; \" '" in shown.replace("<br>", " ")
    assert set(re.findall("<[^>]*>", "".join(trace["hovertext"]))) == {"<br>"}
    assert "<" not in trace["name"] + layout["title"]["text"]


def test_hover_is_wrapped_and_shortened(hostile: SpaceMap) -> None:
    for hover in hover_texts(hostile):
        lines = hover.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").split("<br>")
        assert max(map(len, lines)) <= 75
    longest = max(hover_texts(hostile), key=len)
    assert "…<br><br>prompt: " in longest and len(longest) < 700


def test_hover_without_texts(tmp_path: Path) -> None:
    space = space_in(tmp_path / "cache", store_text=False)
    space.add(make_rows(list("abcd")))
    found = map_space(space)
    assert "prompt_type: 'query'<br>task: 'Task'<br>n_tokens: 0" in hover_texts(found)
    for name in ("x.html", "x.png", "x.parquet"):
        save_map(found, tmp_path / name)
    assert pq.read_schema(tmp_path / "x.parquet").names == [
        "x", "y", "prompt_type", "task", "n_tokens",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="color='prompt': the space has no column"):
        save_map(found, tmp_path / "y.png", color="prompt")
    assert not (tmp_path / "y.png").exists()


def test_a_scale_on_a_page(tmp_path: Path, cats_and_dogs: SpaceMap) -> None:
    (trace,), _ = traces(save_map(cats_and_dogs, tmp_path / "x.html", color="n_tokens"))
    bar = trace["marker"]["colorbar"]
    assert bar["title"]["text"] == "n_tokens"
    assert bar["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    assert trace["showlegend"] is False


def test_the_rest_is_drawn_first_and_listed_last(tmp_path: Path) -> None:
    space, texts = space_in(tmp_path / "cache"), [f"{i}" for i in range(66)]
    columns = {"text": texts, "task": [f"t{i % 11}" for i in range(66)]}
    rows = make_rows(texts)
    space.add(Rows(rows.keys, rows.values, columns))
    data, _ = traces(save_map(map_space(space), tmp_path / "x.html"))
    assert data[0]["name"] == "other (6)" and data[0]["legendrank"] == 10
    assert [trace["legendrank"] for trace in data[1:]] == [*range(10)]


@pytest.mark.parametrize("color", ["prompt", "n_tokens"])
def test_a_picture(tmp_path: Path, cats_and_dogs: SpaceMap, color: str) -> None:
    file = save_map(cats_and_dogs, tmp_path / "x.png", color=color)
    with Image.open(file) as image:
        assert image.format == "PNG" and image.size == (1800, 1350)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    saturated = pixels[(pixels.max(axis=1) - pixels.min(axis=1)) > 100]
    assert len(saturated) > 5000  # more than a few dots
    assert len(np.unique(saturated // 64, axis=0)) >= 2
    assert not Gcf.get_all_fig_managers()  # pyplot knows nothing of it


def test_a_picture_of_strange_names(tmp_path: Path, hostile: SpaceMap) -> None:
    """Neither formulas nor letters that the fonts lack make it fail, or speak."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for color in ("prompt", "n_tokens"):  # n_tokens is null in all rows
            with Image.open(save_map(hostile, tmp_path / f"{color}.png", color=color)) as image:
                assert image.size == (1800, 1350)


def test_a_table(tmp_path: Path, cats_and_dogs: SpaceMap) -> None:
    table = pq.read_table(save_map(cats_and_dogs, tmp_path / "x.parquet"))
    assert table.schema.field("x").type == table.schema.field("y").type == pa.float32()
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    assert (xy == cats_and_dogs.xy).all()
    assert table.drop_columns(["x", "y"]).equals(cats_and_dogs.points.columns)
    assert table.column_names == ["x", "y", "text", "prompt", "prompt_type", "task", "n_tokens"]


def test_files_that_are_refused(tmp_path: Path, cats_and_dogs: SpaceMap) -> None:
    with pytest.raises(ConfigError, match=r"x\.svg ends in none of \.html, \.png, \.parquet"):
        save_map(cats_and_dogs, tmp_path / "x.svg")
    with pytest.raises(ConfigError, match=r"color='task': .* has no colours, but all columns"):
        save_map(cats_and_dogs, tmp_path / "x.parquet", color="task")
    with pytest.raises(CacheError, match="cannot be written"):
        save_map(cats_and_dogs, tmp_path / "none" / "x.parquet")
    (tmp_path / "x.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"x\.parquet exists.*overwrite=True"):
        save_map(cats_and_dogs, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_text() == "mine"
    assert (
        len(pq.read_table(save_map(cats_and_dogs, tmp_path / "x.parquet", overwrite=True))) == 200
    )


def test_a_failure_leaves_the_old_file(
    tmp_path: Path, cats_and_dogs: SpaceMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        _[-1].write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embcache.maps.draw.save_page", full)
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(CacheError, match="No space left on device"):
        save_map(cats_and_dogs, tmp_path / "x.html", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.html"]
    assert (tmp_path / "x.html").read_text() == "mine"


@pytest.mark.parametrize(("name", "package"), [("x.html", "plotly"), ("x.png", "matplotlib")])
def test_a_missing_library(
    tmp_path: Path,
    cats_and_dogs: SpaceMap,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    package: str,
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    install = rf"needs {package}.*pip install '\.\[map\]' in a clone .* pip install {package}\."
    with pytest.raises(ConfigError, match=install):
        save_map(cats_and_dogs, tmp_path / name)
    save_map(cats_and_dogs, tmp_path / "x.parquet")  # needs neither
