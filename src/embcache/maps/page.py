"""A map as an HTML page that needs no network."""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from embcache.maps.color import (
    OTHER,
    Coloring,
    Scale,
    axis_titles,
    label,
    legend_entry,
    subtitle,
    title,
)
from embcache.maps.project import SpaceMap, import_extra

_SHOWN = 300  # characters of a text
_WIDTH = 70

# The browser is told to load nothing, and to send nothing, whatever the script would.
_PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 0; }}</style>
</head>
<body>
{plot}
</body>
</html>
"""


def save_page(space_map: SpaceMap, coloring: Coloring, file: Path) -> None:
    """Write a map as one HTML page, with plotly's script in it.

    Args:
        space_map: The map.
        coloring: Which colour each point has.
        file: The file to write; a file that exists is replaced.

    Raises:
        ConfigError: plotly is not installed.
        OSError: The file cannot be written.
    """
    graphs = import_extra("plotly.graph_objects")
    figure = graphs.Figure()
    hover = np.array(hover_texts(space_map), object)
    for trace in _traces(space_map, coloring):
        rows = trace.pop("rows")
        figure.add_trace(
            graphs.Scattergl(
                x=space_map.xy[rows, 0],
                y=space_map.xy[rows, 1],
                hovertext=hover[rows],
                hoverinfo="text",
                mode="markers",
                **trace,
            )
        )
    figure.update_layout(_layout(space_map, coloring))
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        default_height="100vh",
        config={
            "responsive": True,
            "displaylogo": False,
            "scrollZoom": True,
            "showSendToCloud": False,  # a button that uploads the texts
            "typesetMath": False,  # a text with dollars is no formula
        },
    )
    name = html.escape(title(space_map))
    file.write_text(_PAGE.format(title=name, plot=plot), encoding="utf-8")


def hover_texts(space_map: SpaceMap) -> list[str]:
    """What is shown beside a point under the mouse, as HTML.

    Args:
        space_map: The map.

    Returns:
        For point i its text, wrapped and shortened, and prompt, prompt type, task and number of
        tokens, as far as the space has them.
    """
    columns = space_map.points.columns
    return [_hover(row) for row in columns.to_pylist()]


def _hover(row: dict[str, Any]) -> str:
    lines = []
    if row.get("text") is not None:
        lines = [*textwrap.wrap(_shorten(row["text"]), _WIDTH), ""]
    for name in ("prompt", "prompt_type", "task"):
        if name in row:
            lines.append(f"{name}: {label(row[name])}")
    if row.get("n_tokens") is not None:
        lines.append(f"n_tokens: {row['n_tokens']:,}")
    return "<br>".join(map(escape, lines))


def _shorten(text: str) -> str:
    flat = " ".join(text[: 4 * _SHOWN].split())  # enough, and a text may be a book
    if len(flat) <= _SHOWN and len(text) <= 4 * _SHOWN:
        return flat
    return flat[: _SHOWN - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def escape(text: str) -> str:
    """Escape a text for plotly, which takes `<b>`, `<br>`, `<a>` and entities for markup.

    Args:
        text: The text as it is to be read.
    """
    return html.escape(text, quote=False)  # it knows no &quot;


def _traces(space_map: SpaceMap, coloring: Coloring) -> list[dict[str, Any]]:
    dots = _dots(len(space_map.xy))
    traces: list[dict[str, Any]] = []
    for rank, group in enumerate(coloring.groups):
        traces.append(
            {
                "rows": group.rows,
                "name": escape(legend_entry(group)),
                "marker": {"color": group.color, **dots},
                "legendrank": rank,
                "showlegend": True,
            }
        )
    # The last drawn lies on top: small groups above large ones, "other" below all.
    if traces and coloring.groups[-1].label == OTHER:
        traces.insert(0, traces.pop())
    if (scale := coloring.scale) is not None:
        marker = dots | _marker(scale, coloring.by)
        traces.append({"rows": scale.rows, "marker": marker, "showlegend": False})
    return traces


def _dots(count: int) -> dict[str, float]:
    """Size and opacity that suit so many points."""
    return {
        "size": float(np.clip(300 / count**0.5, 3, 9)),
        "opacity": float(np.clip(40 / count**0.5, 0.3, 0.85)),
    }


def _marker(scale: Scale, by: str) -> dict[str, Any]:
    low, high = np.log10(scale.bounds)
    return {
        "color": np.log10(scale.values),
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "colorbar": {
            "title": {"text": by},
            "tickvals": np.log10(scale.ticks),
            "ticktext": [f"{tick:,}" for tick in scale.ticks],
        },
    }


def _layout(space_map: SpaceMap, coloring: Coloring) -> dict[str, Any]:
    horizontal, vertical = axis_titles(space_map)
    axis = {"showticklabels": False, "zeroline": False, "showgrid": False, "showline": False}
    return {
        "template": "plotly_white",
        "title": {
            "text": escape(title(space_map)),
            "subtitle": {"text": subtitle(space_map)},
        },
        "xaxis": axis | {"title": {"text": horizontal}},
        "yaxis": axis | {"title": {"text": vertical}, "scaleanchor": "x"},
        # Below: beside the points, one long prompt would take half of the page.
        "legend": {
            "title": {"text": coloring.by if coloring.scale is None else ""},
            "itemsizing": "constant",
            "orientation": "h",
            "y": -0.06,
            "yanchor": "top",
        },
        "margin": {"t": 90, "r": 30, "b": 30, "l": 50},
        "hoverlabel": {
            "align": "left",
            "bgcolor": "white",
            "font": {"size": 12, "color": "#222222"},
        },
        "hovermode": "closest",
        "dragmode": "pan",
    }
