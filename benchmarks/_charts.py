"""Charts of the benchmarks, as SVG: how long each contender takes, embcache = 1.

The same samples make the same file, and colours are such that they can be read on a light and on a
dark background, which stays transparent.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from _report import Part

OURS, THEIRS, FLOOR, INK = "#1f9e6e", "#5b8bd0", "#a0a0a0", "#7d7d7d"
_STYLE: Any = {
    "svg.hashsalt": "embcache",
    "svg.fonttype": "none",  # text stays text: smaller, and in the reader's own font
    "font.size": 10,
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.labelcolor"), INK),
}
_WIDE = 20.0  # ratios that are further apart than this are drawn on a logarithmic scale


def draw(part: Part, path: Path) -> None:
    """Draw a part: a bar for each contender, and a line from its fastest to its slowest sample.

    Args:
        part: The part; contenders without samples are left out.
        path: The file that is written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = part.measured()
    one = median(part.contenders[part.base].seconds)
    middle = [median(samples.seconds) / one for samples in measured.values()]
    low = [m - min(s.seconds) / one for m, s in zip(middle, measured.values(), strict=True)]
    high = [max(s.seconds) / one - m for m, s in zip(middle, measured.values(), strict=True)]
    with matplotlib.rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 0.7 + 0.42 * len(measured)))
        labels = [samples.label for samples in measured.values()]
        places = range(len(labels))
        colors = [_color(name, part) for name in measured]
        axes.barh(places, middle, color=colors, height=0.62)
        axes.errorbar(middle, places, xerr=(low, high), fmt="none", ecolor=INK, elinewidth=1.2)
        for place, ratio, more in zip(places, middle, high, strict=True):
            axes.annotate(
                f"{ratio:.2f}",
                (ratio + more, place),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        if max(middle) > _WIDE * min(middle):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.12)
        axes.set_xlabel(f"time, {part.contenders[part.base].label} = 1 (less is better)")
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.spines[:].set_visible(False)
        # No date: the same samples make the same file.
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def _color(name: str, part: Part) -> str:
    if name == "embcache":
        return OURS
    return THEIRS if part.contenders[name].rival else FLOOR
