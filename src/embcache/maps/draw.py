"""Writing a map to a file, in the format that the file's ending names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embcache.errors import ConfigError
from embcache.identity.home import user_path
from embcache.maps.color import (
    REST_COLOR,
    Coloring,
    Scale,
    axis_titles,
    color_points,
    legend_entry,
    subtitle,
    title,
)
from embcache.maps.page import save_page
from embcache.maps.project import SpaceMap, check_extra, import_extra
from embcache.store.files import check_new, new_files

_PARQUET = ".parquet"
_LIBRARIES = {".html": "plotly", ".png": "matplotlib", _PARQUET: None}


def check_target(
    target: str | os.PathLike[str], *, color: str | None = None, overwrite: bool = False
) -> Path:
    """Refuse a file that `save_map` could not write, before any row is read.

    Args:
        target: A file name that ends in `.html`, `.png` or `.parquet`.
        color: What to colour by; None for the default.
        overwrite: Whether the file may exist.

    Returns:
        The file's path, `~` expanded.

    Raises:
        ConfigError: The file's ending is unknown, the file exists and `overwrite` is False, the
            library that draws it is not installed, or `color` is given for a `.parquet`.
    """
    file = user_path(target, "target")
    if file.suffix not in _LIBRARIES:
        raise ConfigError(
            f"{file} ends in none of {', '.join(_LIBRARIES)}: give one of these, it is the format."
        )
    if color is not None and file.suffix == _PARQUET:
        raise ConfigError(
            f"color={color!r}: {file} has no colours, but all columns. Leave it out, or write "
            ".html or .png."
        )
    check_new([file], overwrite)
    if library := _LIBRARIES[file.suffix]:
        check_extra(library)
    return file


def save_map(
    space_map: SpaceMap,
    target: str | os.PathLike[str],
    *,
    color: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a map to a file.

    Args:
        space_map: The map.
        target: A file name that ends in `.html`, for a page that needs no network; in `.png`, for
            a picture; or in `.parquet`, for a table as of `map_table`.
        color: What to colour by, see `color_points`; None for the default.
        overwrite: Whether to replace a file that exists.

    Returns:
        The file's path, `~` expanded.

    Raises:
        ConfigError: The file's ending is unknown, the file exists and `overwrite` is False, the
            library that draws it is not installed, `color` is given for a `.parquet`, or `color`
            is unknown or a column that the space does not have.
        CacheError: The file cannot be written.
    """
    file = check_target(target, color=color, overwrite=overwrite)
    coloring = None if file.suffix == _PARQUET else color_points(space_map.points.columns, color)
    with new_files([file]) as (temporary,):
        if coloring is None:
            pq.write_table(map_table(space_map), temporary, compression="zstd")
        elif file.suffix == ".html":
            save_page(space_map, coloring, temporary)
        else:
            save_picture(space_map, coloring, temporary)
    return file


def map_table(space_map: SpaceMap) -> pa.Table:
    """A map as a table, one row for each point.

    Args:
        space_map: The map.

    Returns:
        Columns x and y (float32), and text, prompt, prompt_type, task (strings) and n_tokens
        (int32) as far as the space has them.
    """
    columns = space_map.points.columns
    coordinates = dict(zip("xy", space_map.xy.T, strict=True))
    arrays = {name: pa.array(values) for name, values in coordinates.items()}
    arrays |= {name: columns[name] for name in columns.column_names}
    return pa.table(arrays)


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
