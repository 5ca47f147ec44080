"""Run as a process that is going to be killed: commits texts one by one, and compacts all the time.

Prints a line for every text that the space has acknowledged.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import numpy as np

from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Database, Rows, background, compaction
from tests.fakes import fake_vector

IDENTITY = Identity("m", "r", "float32")


def rows(texts: list[str]) -> Rows:
    vectors = np.stack([fake_vector(text) for text in texts])
    keys = text_keys(IDENTITY.to_bytes(), "", texts)
    return Rows(keys, vectors, {"text": texts, "prompt": ""})


if __name__ == "__main__":
    folder, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    background.GRACE = timedelta(0)
    compaction.SLACK_BYTES, compaction.FANOUT = 0, 4  # so that most kills fall into it
    compaction.SLACK = 0
    space = Database(folder, writable=True).space(IDENTITY, "m", "v")
    print("ready", flush=True)
    for number in range(count):
        text = f"{name} {number}"
        space.add(rows([text]))
        print(text, flush=True)
