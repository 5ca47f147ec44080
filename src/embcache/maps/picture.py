"""A map as a PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from embcache.maps.color import (
    REST_COLOR,
    Coloring,
    Scale,
    axis_titles,
    legend_entry,
    subtitle,
    title,
)
from embcache.maps.extra import import_extra
from embcache.maps.project import SpaceMap

_INCHES = (12.0, 9.0)
_DPI = 150
_COLUMNS = ((4, 28), (3, 38), (2, 58), (1, 10**6))  # of the legend, for the longest entry's width

# For prompts that matplotlib's own font has no letters for; those that are there.
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "PingFang SC", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Hebrew",
    "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


def save_picture(space_map: SpaceMap, coloring: Coloring, file: Path) -> None:
    """Draw a map into a PNG file of 1800 x 1350 pixels.

    Args:
        space_map: The map.
        coloring: Which colour each point has.
        file: The file to write; a file that exists is replaced.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    matplotlib = import_extra("matplotlib")
    figures = import_extra("matplotlib.figure")
    known = set(import_extra("matplotlib.font_manager").get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _FONTS if name in known)]
    with matplotlib.rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from")  # boxes are drawn
        figure = figures.Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.12)
        axes = figure.add_subplot()
        _frame(axes, space_map)
        if coloring.scale is not None:
            _draw_scale(axes, space_map, coloring.scale, coloring.by)
        if coloring.groups:
            _draw_groups(axes, space_map, coloring)
            _legend(axes, coloring)
        figure.savefig(file, format="png")


def _frame(axes: Any, space_map: SpaceMap) -> None:
    # Names of models and prompts may hold dollars, which would be formulas.
    axes.set_title(title(space_map), fontsize=17, loc="left", pad=32, parse_math=False)
    axes.annotate(
        subtitle(space_map),
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 10),
        textcoords="offset points",
        fontsize=12,
        color="#555555",
    )
    horizontal, vertical = axis_titles(space_map)
    axes.set_xlabel(horizontal, fontsize=11)
    axes.set_ylabel(vertical, fontsize=11)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])  # coordinates mean nothing by themselves
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def _draw_scale(axes: Any, space_map: SpaceMap, scale: Scale, by: str) -> None:
    norm = import_extra("matplotlib.colors").LogNorm(*scale.bounds, clip=True)
    look = {"norm": norm, "cmap": "viridis"}
    dots = _dots(len(space_map.xy))
    axes.scatter(*space_map.xy[scale.rows].T, c=scale.values, **look, **dots)
    # Not of the dots themselves: they are transparent.
    colors = import_extra("matplotlib.cm").ScalarMappable(**look)
    bar = axes.figure.colorbar(colors, ax=axes, shrink=0.8, pad=0.02)
    bar.set_ticks(scale.ticks, labels=[f"{tick:,}" for tick in scale.ticks], fontsize=11)
    bar.minorticks_off()
    bar.set_label(by, fontsize=11)


def _draw_groups(axes: Any, space_map: SpaceMap, coloring: Coloring) -> None:
    """Draw all groups' points at once, in their random order, so that no group hides another.

    Only those of the grey rest lie below all others.
    """
    groups = coloring.groups
    rows = np.concatenate([group.rows for group in groups])
    colors = np.repeat([group.color for group in groups], [len(group.rows) for group in groups])
    order = np.lexsort((rows, colors != REST_COLOR))
    axes.scatter(*space_map.xy[rows[order]].T, c=colors[order].tolist(), **_dots(len(space_map.xy)))


def _dots(count: int) -> dict[str, float]:
    """Size and opacity that suit so many points."""
    return {
        "s": float(np.clip(60_000 / count, 3, 60)),
        "alpha": float(np.clip(45 / count**0.5, 0.1, 0.85)),
        "linewidths": 0,
    }


def _legend(axes: Any, coloring: Coloring) -> None:
    entries = [legend_entry(group) for group in coloring.groups]
    longest = max(map(len, entries))
    legend = axes.figure.legend(
        [axes.scatter([], [], s=70, color=group.color) for group in coloring.groups],
        entries,
        title=coloring.by if coloring.scale is None else None,
        loc="outside lower left",
        ncols=next(columns for columns, width in _COLUMNS if longest <= width),
        frameon=False,
        borderaxespad=1.2,
        fontsize=11,
        alignment="left",
        title_fontproperties={"weight": "bold", "size": 11},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
