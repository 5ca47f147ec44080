"""The functions of tests/property/test_fuzz.py, for minutes instead of seconds: `make fuzz`.

Hypothesis makes up what comes from someone else, JSON of identities, schema metadata, columns,
files of every format, and damages it; each function says what must come of it. They take turns,
each round with a seed of its own.

Prints a row of the table in docs/reliability.md; the exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hypothesis
from _known import table_row

os.environ["EMBCACHE_FUZZ_EXAMPLES"] = "200"  # in one turn
sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.property import test_fuzz


def main() -> int:
    """Fuzz and print; returns the exit status."""
    arguments = _parse_arguments()
    done: Counter[str] = Counter()
    failures: list[str] = []
    ends = time.monotonic() + 60 * arguments.minutes
    for turn in itertools.count(arguments.seed * 10**6):
        for name, function in targets(done):
            if time.monotonic() >= ends:
                return report(arguments, done, failures)
            try:
                hypothesis.seed(turn)(function)()
            except Exception:
                failures.append(name)
                traceback.print_exc()
                print(f"{name} fails with hypothesis.seed({turn})", file=sys.stderr)
    raise AssertionError("an endless loop has ended")


def targets(done: Counter[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The functions by name, each of which counts its examples and takes no argument.

    Args:
        done: Where they are counted.
    """
    for name, test in vars(test_fuzz).items():
        if not name.startswith("test_"):
            continue
        cases: dict[str, dict[str, str]] = {name: {}}
        for mark in getattr(test, "pytestmark", ()):
            argument, values = mark.args
            cases = {f"{name}[{value}]": {argument: value} for value in values}
        for case, given in cases.items():
            yield case, partial(_counted(test, case, done), **given)


def _counted(test: Any, name: str, done: Counter[str]) -> Any:
    """A function of Hypothesis, which counts what it is given."""
    handle = test.hypothesis
    inner = handle.inner_test = getattr(handle.inner_test, "__wrapped__", handle.inner_test)

    @wraps(inner)
    def count(*given: Any, **named: Any) -> None:
        done[name] += 1
        inner(*given, **named)

    handle.inner_test = count
    return test


def report(arguments: argparse.Namespace, done: Counter[str], failures: list[str]) -> int:
    """Print the table's row; returns the exit status."""
    for name, count in done.items():
        print(f"{count:>9,}  {name}", file=sys.stderr)
    print(
        table_row(
            (
                f"`make fuzz ARGS='--minutes {arguments.minutes:g} --seed {arguments.seed}'`",
                f"{done.total():,} inputs for {len(done)} functions",
                f"failures: {', '.join(sorted(set(failures))) or 'none'}",
                "every one is an answer or an error of embcache's own",
            )
        )
    )
    return 1 if failures else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
