"""The command map: a picture of what a space holds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from embcache.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    ContainsFilter,
    JsonOption,
    OverwriteOption,
    PromptFilter,
    SpaceArgument,
    StorageOptions,
    location_of,
)
from embcache.cli.output import human_count, print_json, print_text
from embcache.maps.color import Color, color_points
from embcache.maps.draw import check_target, save_map
from embcache.maps.points import LEAST_POINTS, sample_points
from embcache.maps.project import Method, SpaceMap, check_method, project
from embcache.tools.find import find_space


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("map", epilog="Example: embcache map e5-small e5.html --method umap")(map_)


def map_(
    space: SpaceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="File that ends in .html (a page that shows texts and needs no network), .png, or "
            ".parquet (coordinates and texts, for embedding-atlas, say).",
            show_default=False,
        ),
    ],
    method: Annotated[
        Method,
        typer.Option(help="umap (cosine) keeps neighbours together, and takes longer."),
    ] = "pca",
    color: Annotated[
        Color | None,
        typer.Option(
            help="What to colour by. If not given: the first of prompt, task and prompt_type that "
            "has several values.",
            show_default=False,
        ),
    ] = None,
    prompt: PromptFilter = None,
    contains: ContainsFilter = None,
    limit: Annotated[
        int, typer.Option(min=LEAST_POINTS, help="How many rows at most, drawn at random.")
    ] = 10_000,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same one draws the same map.")
    ] = 0,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a space's vectors, each checked, in two dimensions.

    Needs the extra "map": pip install '.[map]' in a clone of embcache.
    """
    check_target(out, color=color, overwrite=overwrite)
    check_method(method)
    chosen = find_space(space, location_of(cache, storage_options))
    points = sample_points(chosen, prompt=prompt, contains=contains, limit=limit, seed=seed)
    coloring = color_points(points.columns, color)  # before the projection, which takes longer
    drawn = project(points, method, seed)
    file = save_map(drawn, out, color=color, overwrite=overwrite)
    by = None if file.suffix == ".parquet" else coloring.by
    if as_json:
        print_json(_summary(drawn, file, by))
    else:
        _print(drawn, file, by)


def _summary(drawn: SpaceMap, file: Path, color: str | None) -> dict[str, Any]:
    return {
        "file": file,
        "points": len(drawn.points),
        "rows_matched": drawn.points.matched,
        "damaged": drawn.points.damaged,
        "method": drawn.method,
        "color": color,
        "size_bytes": file.stat().st_size,
        "explained_variance_ratio": drawn.explained,
    }


def _print(drawn: SpaceMap, file: Path, color: str | None) -> None:
    points = drawn.points
    counts = f"{human_count(len(points))} of {human_count(points.matched)} rows"
    lost = f"; {human_count(points.damaged)} damaged left out" if points.damaged else ""
    by = f", coloured by {color}" if color else ""
    print_text(f"{file}: {counts}{by}, {decimal(file.stat().st_size)}{lost}")
    if drawn.explained is not None:
        first, second = drawn.explained
        print_text(
            f"The two axes show {first + second:.1%} of the variance ({first:.1%} and "
            f"{second:.1%}) of {points.vectors.shape[1]:,} dimensions."
        )
    if file.suffix == ".parquet":
        text = " --text text" if "text" in points.columns.column_names else ""
        print_text(f"Open it with: embedding-atlas {shlex.quote(str(file))} --x x --y y{text}")
