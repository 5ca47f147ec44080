"""Run as a process that is going to be killed: create spaces at the moment at which others do.

Reads where from standard input, as JSON; prints a line for every row that a space acknowledged.
"""

from __future__ import annotations

import json
import sys
import time

from embcache.identity.identity import Identity
from embcache.store import Database
from tests.spaces import make_rows


def identity_of(round_: int) -> Identity:
    """Of the space that all writers create in one round."""
    return Identity("organization/name", f"{round_:040x}", "float32")


def main() -> None:
    job = json.load(sys.stdin)
    database = Database(job["uri"], job["options"], writable=True)
    for round_ in range(job["first"], job["rounds"]):
        identity = identity_of(round_)
        # All at one moment; who is late goes on at once.
        time.sleep(max(0.0, job["begin"] + round_ * job["seconds"] - time.time()))
        space = database.space(identity, identity.model, "vllm 1.0", compact_automatically=False)
        text = f"{job['writer']} {round_}"
        space.add(make_rows([text], seed=round_, identity=identity))
        print(round_, text, sep="\t", flush=True)


if __name__ == "__main__":
    main()
