"""One contender in a process of its own: `python _contender.py MODULE:FUNCTION SETUP`.

The function is given the `Setup` and returns a `Contender`. It gets ready, says so on standard
output, and for each line on standard input it does its work once and answers with the seconds that
took. What is wrong ends it with an error.

Nothing is imported here that takes time: what a process needs from its start on is measured too.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

from _setup import ANSWER, Contender, Setup


def main() -> None:
    """Get the contender ready that the command line names, and work once for each line."""
    where, setup = sys.argv[1:]
    module, function = where.split(":")
    contender: Contender = getattr(import_module(module), function)(Setup.from_json(setup))
    _answer(0.0)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        call = contender.prepare(number)
        began = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - began
        contender.check(found, number)
        _answer(seconds)


def _answer(seconds: float) -> None:
    print(f"\n{ANSWER} {seconds}", flush=True)  # on a line of its own, whatever was left open


if __name__ == "__main__":
    main()
