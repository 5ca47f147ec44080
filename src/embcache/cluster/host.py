"""What a replica does to its own process and its host: its cores, and the end of its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cores() -> list[int]:
    """The CPUs that this process may use, one of each physical core, as vLLM counts them."""
    first: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            siblings = Path(_SIBLINGS.format(cpu)).read_text()
        except OSError:  # a container that hides it
            siblings = str(cpu)
        first.setdefault(siblings, cpu)
    return list(first.values())


def pin(slot: int, of: int) -> None:
    """Give this process its share of the cores, before it loads what starts threads.

    Two engines that both use all cores get in each other's way; and Ray sets OMP_NUM_THREADS to
    what it counts as CPUs, which need not be so many.

    Args:
        slot: Which of the host's replicas this is, from 0.
        of: How many it has.
    """
    every = cores()
    share = every[slot % of :: of] or [every[slot % len(every)]]
    os.environ["OMP_NUM_THREADS"] = str(len(share))
    os.sched_setaffinity(0, share)


# When the pipe from its parent closes, it kills what that has started. Children are looked for
# again and again, since a dead process has none: they go to init.
_WATCH = """
import os, select, signal, sys, time
import psutil
parent = psutil.Process(int(sys.argv[1]))
children = {}
while True:
    try:
        for child in parent.children(recursive=True):
            children[child.pid] = child
    except psutil.NoSuchProcess:
        pass
    if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
        break
for child in children.values():
    if child.pid != os.getpid():
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
"""


def end_children_with(pid: int) -> subprocess.Popen[bytes]:
    """See that what this process starts ends with it, however it ends.

    vLLM runs on a GPU in processes of its own. If only the actor is killed (by Ray, when memory is
    short, or by a person), they would go on, and hold the memory that its successor needs. Ray can
    do this too, but not by default, and not for a cluster that is running.

    Args:
        pid: This process.

    Returns:
        The process that watches this one. When nobody holds it any more, it does its work.
    """
    # The pipe's other end closes with this process; nobody writes to it.
    return subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
