"""embcache beside its peers, in one run on this machine: `make bench`.

It prints tables and goals, and writes the page docs/benchmarks.md. Each sample is taken in a
process of its own, and contenders take turns. Figures are medians, ratios are ratios of medians. A
goal that is missed is reported and no failure; a wrong vector is. `--only` and `--quick` print and
write no page, unless `--page` names one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from _page import PageError, write_page
from _parts_engine import cold, partly, start
from _parts_stored import REAL_KEYS, evaluate, scale, tool, warm, warm_large
from _process import ContenderError
from _report import Goal, Part, machine, print_report, to_json
from _turns import Measure, Plan, progress

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
PARTS: dict[str, Measure] = {
    "warm": warm,
    "warm-large": warm_large,
    "evaluate": evaluate,
    "cold": cold,
    "start": start,
    "partly": partly,
    "scale": scale,
    "tool": tool,
}


def main() -> int:
    """Measure, print, and write what was asked for; returns the exit status."""
    arguments = _parse_arguments()
    # Ended from outside, too, it takes its folders along: some hold ten gigabytes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    about = machine()
    parts: list[Part] = []
    goals: list[Goal] = []
    try:
        for name in arguments.only or PARTS:
            with tempfile.TemporaryDirectory(prefix="embcache-bench-") as folder:
                plan = Plan(
                    *(Path(folder), arguments.quick, arguments.rounds),
                    *(arguments.keys, arguments.model),
                )
                found, wanted = PARTS[name](plan)
            parts += found
            goals += [] if arguments.quick else wanted  # goals are about the full size
            _write(arguments, parts, goals, about)  # who ends it early has what was measured
    except (ContenderError, PageError) as error:
        print(error, file=sys.stderr)
        return 1
    print_report(parts, goals, about)
    return 0


def _write(
    arguments: argparse.Namespace, parts: list[Part], goals: list[Goal], about: dict[str, str]
) -> None:
    if arguments.json:
        report = json.dumps(to_json(parts, goals, about), indent=1)
        arguments.json.write_text(report, encoding="utf-8")
    page = arguments.page or (None if arguments.only or arguments.quick else PAGE)
    if page is None:
        return
    given = shlex.join(_without_files(sys.argv[1:]))
    command = f"make bench ARGS={shlex.quote(given)}" if given else "make bench"
    write_page(page, parts, goals, about, command)
    progress.print(f"{page} is written: {', '.join(part.name for part in parts)}", highlight=False)


def _without_files(arguments: list[str]) -> list[str]:
    """The arguments without those that only say where something is written: paths of a machine."""
    kept: list[str] = []
    skip = False
    for one in arguments:
        is_file = one.partition("=")[0] in ("--json", "--page")
        if not (skip or is_file):
            kept.append(one)
        skip = is_file and "=" not in one
    return kept


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts of it")
    parser.add_argument("--quick", action="store_true", help="few texts, one round: a smoke test")
    parser.add_argument("--rounds", type=int, help="how many, if not as many as each part has")
    parser.add_argument(
        "--keys", type=int, default=REAL_KEYS, help="more keys for scale, which are simulated"
    )
    parser.add_argument("--model", default="", help="another model for cold: hub name or folder")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the page that is written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
