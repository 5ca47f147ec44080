"""The page `docs/benchmarks.md`: what was measured, between markers; the rest is left as it is.

There are two pairs of markers, for machines without a GPU and for machines with one, and a run
rewrites what is between those of its own. Where no machine with a GPU has run it, the page says
which rows are open, and the command that fills them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _charts import draw
from _report import GOAL_COLUMNS, Goal, Part, columns, rows

KINDS = ("cpu", "gpu")
TEMPLATE = """\
# Benchmarks

embcache beside others who do the same work, measured by `make bench` in one run on one machine.
Each sample is taken in a process of its own, and contenders take turns, in another order each
round, so that a machine that gets slower meanwhile gets slower for all. Before it is timed, each
process uses as much memory as the result takes, and gives it back: what a virtual machine's host
has taken away costs whoever touches it first more than all the work that is measured. Figures are
medians, with the least and the greatest; ratios are of medians. Seconds are this machine's; the
ratios travel. Goals that are missed are named. All vectors that come back are compared with what
was filled in, or with each other: a wrong one ends the run. (Real engines, which take long to
start, get one process a round for all lengths of texts, or for all shares that are cached.)

`make bench` measures your machine, and writes this page anew between the markers below;
`make bench ARGS='--only warm'` measures one part and writes nothing.

{cpu}

{gpu}

## What was tried

Notes on attempts to bring these figures down: what was expected, what was measured, what was kept.
"""
OPEN = """\
## With a GPU

No machine with a GPU has run this yet, so these rows are open. This fills them, on one:

    make bench ARGS='--only cold start --page docs/benchmarks.md --model intfloat/e5-large-v2'

| contender | short texts | mixed texts | long texts |
| --- | --- | --- | --- |
| embcache, bfloat16 | open | open | open |
| Sentence Transformers, bfloat16 | open | open | open |
| Sentence Transformers, bfloat16, flash attention | open | open | open |
| mteb's VllmEncoderWrapper, bfloat16 | open | open | open |
| vLLM by itself, bfloat16 | open | open | open |"""


class PageError(Exception):
    """A page that has not the markers, so that nothing can be put between them."""


def write_page(
    path: Path,
    parts: Sequence[Part],
    goals: Sequence[Goal],
    about: dict[str, str],
    command: str,
) -> None:
    """Write tables, charts, goals and machine between the markers of a page, made if need be.

    Args:
        path: The page. Charts lie in `pictures/` beside it.
        parts: The tables.
        goals: The goals.
        about: What the machine is, see `_report.machine`.
        command: What was typed.

    Raises:
        PageError: There is a page without the markers.
    """
    kind = "gpu" if "GPU" in about else "cpu"
    pictures = path.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob(f"bench-{kind}-*.svg"):
        old.unlink()
    for part in parts:
        draw(part, pictures / _picture(kind, part))
    text = path.read_text(encoding="utf-8") if path.exists() else _empty()
    made = _replace(text, kind, _made(kind, parts, goals, about, command), path)
    path.write_text(made, encoding="utf-8")


def _empty() -> str:
    return TEMPLATE.format(
        cpu=_between("cpu", "Nothing was measured yet."), gpu=_between("gpu", OPEN)
    )


def _between(kind: str, text: str) -> str:
    begin, end = _markers(kind)
    return f"{begin}\n\n{text}\n\n{end}"


def _markers(kind: str) -> tuple[str, str]:
    name = f"made by make bench, {kind}"
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _replace(text: str, kind: str, made: str, path: Path) -> str:
    begin, end = _markers(kind)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise PageError(
            f"{path} has no lines {begin!r} and {end!r}: what is made goes between them. Put them "
            "in, or move the page away to have a new one made."
        )
    return before + _between(kind, made) + after


def _made(
    kind: str, parts: Sequence[Part], goals: Sequence[Goal], about: dict[str, str], command: str
) -> str:
    title = "## With a GPU" if kind == "gpu" else "## Without a GPU"
    machine = ", ".join(f"{name} {value}" for name, value in about.items())
    blocks = [title, f"`{command}` on: {machine}."]
    if goals:
        blocks += ["### Goals", _summary(goals), _table(GOAL_COLUMNS, [g.cells() for g in goals])]
    for part in parts:
        head = columns(part)
        blocks += [
            f"### {part.name}",
            f"{part.title}.",
            f"![{part.name}: time of each contender](pictures/{_picture(kind, part)})",
            _table(head, rows(part), right=len(head) - 1),
        ]
        blocks += filter(None, (part.verdict(), *part.notes))
    return "\n\n".join(blocks)


def _summary(goals: Sequence[Goal]) -> str:
    missed = [goal for goal in goals if not goal.met]
    if not missed:
        return f"All of {len(goals)} goals are met."
    return (
        f"{len(missed)} of {len(goals)} goals {'is' if len(missed) == 1 else 'are'} missed: "
        + "; ".join(f"{goal.part}, {goal.text}" for goal in missed)
        + "."
    )


def _picture(kind: str, part: Part) -> str:
    return f"bench-{kind}-{part.name}.svg"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], right: int = 0) -> str:
    """A table in Markdown, whose last `right` columns are aligned to the right."""
    rules = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rules, *body))
