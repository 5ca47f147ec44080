"""The words on a map: what it shows, and what a colour stands for."""

from __future__ import annotations

from embcache.maps.color import Group
from embcache.maps.project import SpaceMap

_TITLE = 80


def title(space_map: SpaceMap) -> str:
    """Model and dtype; of a long path, its end."""
    metadata = space_map.points.metadata
    model = metadata.model
    if len(model) > _TITLE:
        model = "\N{HORIZONTAL ELLIPSIS}" + model[1 - _TITLE :]
    return f"{model}, {metadata.identity.dtype}"


def subtitle(space_map: SpaceMap) -> str:
    """How many points of how many rows, and the method."""
    points = space_map.points
    rows = f"{len(points):,} of {points.matched:,} rows"
    if space_map.explained is None:
        return f"{rows}, {space_map.method.upper()}"
    shown = sum(space_map.explained)
    return f"{rows}, {space_map.method.upper()}: the axes show {shown:.1%} of the variance"


def axis_titles(space_map: SpaceMap) -> tuple[str, str]:
    """Of x and y; UMAP's axes mean nothing by themselves."""
    if space_map.explained is None:
        return "", ""
    first, second = (f"component {i} ({s:.1%})" for i, s in enumerate(space_map.explained, 1))
    return first, second


def legend_entry(group: Group) -> str:
    """A group's label and how many points it has."""
    return f"{group.label} ({len(group.rows):,})"
