"""Writing a map to a file, in the format that the file's ending names."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embcache.errors import ConfigError
from embcache.maps.color import color_points
from embcache.maps.extra import check_extra
from embcache.maps.page import save_page
from embcache.maps.picture import save_picture
from embcache.maps.project import SpaceMap
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
    file = Path(target).expanduser()
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
