"""What many small commits cost: time a call, and disk, as the number of calls grows.

Run: python benchmarks/many_small_calls.py [--calls 1500] [--dim 384] [--off]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Rows, Space
from embcache.store.location import Location
from embcache.store.schema import SpaceMetadata, embcache_version

IDENTITY = Identity("bench/model", "0" * 40, "float32")
_SHOWN = 10  # stretches of calls, one line each


def rows(number: int, texts: int, dim: int) -> Rows:
    """New texts of one call, with random vectors."""
    given = [f"call {number}, text {i}" for i in range(texts)]
    vectors = np.random.default_rng(number).standard_normal((texts, dim)).astype(np.float32)
    keys = text_keys(IDENTITY.to_bytes(), "", given)
    return Rows(keys, vectors, {"text": given, "prompt": ""})


def main() -> None:
    """Commit, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1500)
    parser.add_argument("--texts", type=int, default=1, help="new texts a call")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--off", action="store_true", help="compact_automatically=False")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        location = Location.of(Path(folder)).table("bench")
        metadata = SpaceMetadata(IDENTITY, "bench/model", "none", embcache_version())
        space = Space(location, metadata, compact_automatically=not given.off)
        space.add(rows(given.calls, given.texts, given.dim))
        spent: list[float] = []
        print("| calls | median ms | 99th percentile ms | fragments | on disk MB | rows MB |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for number in range(given.calls):
            new = rows(number, given.texts, given.dim)
            began = time.perf_counter()
            space.add(new)
            spent.append(1e3 * (time.perf_counter() - began))
            if (number + 1) % max(1, given.calls // _SHOWN) == 0:
                _line(space, spent, given.dim)
                spent.clear()
        space.compactor.join()


def _line(space: Space, spent: list[float], dim: int) -> None:
    snapshot = space.snapshot
    assert snapshot.reader is not None
    late = sorted(spent)[int(0.99 * len(spent))]
    print(
        f"| {len(snapshot):,} | {statistics.median(spent):.1f} | {late:.1f} "
        f"| {len(snapshot.reader.fragments)} | {space.location.size() / 1e6:.1f} "
        f"| {len(snapshot) * (4 * dim + 24) / 1e6:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
