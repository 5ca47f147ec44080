"""What the points of a map are coloured by: a column's values, in groups or on a scale."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embcache.errors import ConfigError, quoted
from embcache.identity.identity import short_name
from embcache.maps.project import SpaceMap

Color = Literal["prompt", "prompt_type", "task", "n_tokens"]
COLORS = ("prompt", "prompt_type", "task", "n_tokens")

# Matthew Petroff's ten colours, which people with any colour vision tell apart (arXiv 2107.02270).
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
REST_COLOR = "#d9d9d9"
UNKNOWN = "(unknown)"
OTHER = "other"

_CHOSEN_FROM = ("prompt", "task", "prompt_type")


@dataclass(frozen=True)
class Group:
    """Points of one colour.

    Attributes:
        label: The value that the points have in common, quoted and shortened; `(unknown)` for
            null, `other` for the values that get no colour of their own.
        color: Their colour, `#rrggbb`.
        rows: `(n,) int64`, which points they are; at least one.
    """

    label: str
    color: str
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """Points coloured by a number, on a logarithmic scale: lengths are very uneven.

    Attributes:
        rows: `(m,) int64`, which points they are; at least one.
        values: `(m,) float64`, the number of each, at least 1.
    """

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @property
    def bounds(self) -> tuple[float, float]:
        """The scale's lower and upper end; the few outliers beyond them look as the ends do."""
        low, high = (float(end) for end in np.percentile(self.values, (1, 99)))
        return (low, high) if low < high else (low, 10 * low)

    @property
    def ticks(self) -> list[int]:
        """Round numbers within the bounds; the bounds, rounded, where there is at most one."""
        low, high = self.bounds
        rounds = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]
        inside = [number for number in rounds if low <= number <= high]
        return inside if len(inside) > 1 else [round(low), round(high)]


@dataclass(frozen=True)
class Coloring:
    """Which colour each point has.

    Attributes:
        by: The column that the points are coloured by.
        groups: Groups of points, the largest first, `other` last. Beside a scale, the points
            without a number are a group.
        scale: The points that have a number; None where the column is not one of numbers, or has
            only nulls.
    """

    by: str
    groups: list[Group]
    scale: Scale | None = None


def color_points(columns: pa.Table, by: str | None = None) -> Coloring:
    """Choose a colour for each point.

    Args:
        columns: One row for each point, see `Points.columns`.
        by: The column to colour by: "prompt", "prompt_type", "task", or "n_tokens" for a scale.
            None for the first of prompt, task and prompt_type that has several values, or else the
            first of them that the space has.

    Raises:
        ConfigError: `by` is unknown, or the space has no such column.
    """
    if by is None:
        by = _default(columns)
    if by not in COLORS:
        raise ConfigError(f"color={by!r} is unknown. Use one of {', '.join(COLORS)}.")
    if by not in columns.column_names:
        others = ", ".join(name for name in COLORS if name in columns.column_names)
        raise ConfigError(
            f"color={by!r}: the space has no column `{by}` (store_text=False keeps texts and "
            f"prompts off the disk). Colour by one of {others}."
        )
    return _scale(columns, by) if by == "n_tokens" else _groups(columns, by)


def _default(columns: pa.Table) -> str:
    there = [name for name in _CHOSEN_FROM if name in columns.column_names]
    several = (name for name in there if pc.count_distinct(columns[name], "all").as_py() > 1)
    return next(several, there[0])


def _groups(columns: pa.Table, by: str) -> Coloring:
    values = columns[by].to_pylist()
    # By value where they are as frequent: the same colours whatever the points' order.
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0] or ""))
    place = {value: min(at, len(PALETTE)) for at, (value, _) in enumerate(counts)}
    places = np.array([place[value] for value in values])
    labels = [*(label(value) for value, _ in counts[: len(PALETTE)]), OTHER]
    colors = [*PALETTE[: len(labels) - 1], REST_COLOR]
    groups = [
        Group(name, color, np.flatnonzero(places == at))
        for at, (name, color) in enumerate(zip(labels, colors, strict=True))
    ]
    return Coloring(by, [group for group in groups if len(group.rows)])


def _scale(columns: pa.Table, by: str) -> Coloring:
    values = columns[by].cast(pa.float64()).to_numpy()
    unknown = np.isnan(values)  # null
    groups = [Group(UNKNOWN, REST_COLOR, np.flatnonzero(unknown))] if unknown.any() else []
    if unknown.all():
        return Coloring(by, groups)
    return Coloring(by, groups, Scale(np.flatnonzero(~unknown), np.maximum(values[~unknown], 1)))


def label(value: str | None) -> str:
    """A column's value for people to read.

    Args:
        value: The value; None for null.

    Returns:
        The value in quotes, shortened; `(unknown)` for null.
    """
    if value is None:
        return UNKNOWN
    return quoted(value)


def title(space_map: SpaceMap) -> str:
    """The title of a map: model and dtype.

    Args:
        space_map: The map.
    """
    metadata = space_map.points.metadata
    return f"{short_name(metadata.model)}, {metadata.identity.dtype}"


def subtitle(space_map: SpaceMap) -> str:
    """The line below a map's title: how many points of how many rows, and the method.

    Args:
        space_map: The map.
    """
    points = space_map.points
    rows = f"{len(points):,} of {points.matched:,} rows"
    if space_map.explained is None:
        return f"{rows}, {space_map.method.upper()}"
    shown = sum(space_map.explained)
    return f"{rows}, {space_map.method.upper()}: the axes show {shown:.1%} of the variance"


def axis_titles(space_map: SpaceMap) -> tuple[str, str]:
    """The titles of a map's x and y axes.

    Args:
        space_map: The map.

    Returns:
        For PCA, which share of the variance each shows; empty for UMAP, whose axes mean nothing
        by themselves.
    """
    if space_map.explained is None:
        return "", ""
    first, second = (f"component {i} ({s:.1%})" for i, s in enumerate(space_map.explained, 1))
    return first, second


def legend_entry(group: Group) -> str:
    """A group's line in the legend: its label and how many points it has.

    Args:
        group: The group.
    """
    return f"{group.label} ({len(group.rows):,})"
