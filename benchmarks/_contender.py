"""One contender in a process of its own: `python _contender.py MODULE:FUNCTION SETUP`.

The function is given the `Setup` and returns a `Contender`. It gets ready, says so on standard
output, and for each line on standard input it does its work once and answers with the seconds that
took. What is wrong ends it with an error.

Nothing is imported here that takes time: what a process needs from its start on is measured too.
"""

from __future__ import annotations

import mmap
import sys
import time
from importlib import import_module

from _setup import ANSWER, Contender, Setup


def main() -> None:
    """Get the contender ready that the command line names, and work once for each line."""
    where, told = sys.argv[1:]
    module, function = where.split(":")
    setup = Setup.from_json(told)
    contender: Contender = getattr(import_module(module), function)(setup)
    _touch_memory(setup.result_bytes)
    _answer(0.0)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        call = contender.prepare(number)
        began = time.perf_counter()
        found = call()
        seconds = time.perf_counter() - began
        contender.check(found, number)
        _answer(seconds)


def _touch_memory(size: int) -> None:
    """Use as much memory as the result takes, and give it back, before anything is timed.

    A virtual machine's free memory may belong to its host until it is touched, at up to 6 ms for
    2 MiB: more than all the work that is measured, for whichever contender comes first.
    """
    if not size:
        return
    with mmap.mmap(-1, size) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # as NumPy asks for it
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def _answer(seconds: float) -> None:
    print(f"\n{ANSWER} {seconds}", flush=True)  # on a line of its own, whatever was left open


if __name__ == "__main__":
    main()
