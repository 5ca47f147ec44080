"""Kills on a Ray cluster, and what they leave in the cache: `make ray-test`.

Jobs warm a new cache on a cluster of three nodes on this machine, with an engine that notes what it
embeds, and something of them gets a SIGKILL in the middle:

- replicas: a replica's process, three times in a run.
- driver: the driver; then the same command is given again.
- alone: the driver where the Ray is its own, and ends with it; then the same command again.
- node: a whole node, with the replica on it.
- full: the same, where the replicas have all CPUs, and that one finds no room.
- desk: the actor that keeps the job's claims: the job ends with a ClusterError, and the same
  command goes on.
- two: replicas of two jobs that warm the same cache with the same texts at once, each on a Ray of
  its own.

Afterwards the cache must check clean, hold every text with its vector and nothing else, and be
without duplicates after a compaction; one job may have embedded 1.2 times the texts at most; no
process may be left; and files that were written and never committed must go once they are old.

With --store the caches are in an object store, the tests' SeaweedFS. Prints rows of the table in
docs/reliability.md; the exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from _kills_processes import Brood
from _kills_trial import KINDS, Trial
from _known import table_row
from _storm_store import started_store

if TYPE_CHECKING:
    from tests.object_store import ObjectStore

HEAD = (
    *("kind", "seed", "place", "texts", "kills", "work", "duplicates before and after compaction"),
    *("orphans", "seconds", "verdict"),
)


def main() -> int:
    """Run all trials; returns the exit status."""
    arguments = _parse_arguments()
    # Said at the starts of processes, in which nothing has been used yet.
    warnings.filterwarnings("ignore", "lance is not fork-safe|lancedb fork support")
    failed = 0
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="kills-", dir=arguments.folder)
        folder = Path(stack.enter_context(temporary))
        _set_environment(folder)
        brood = Brood()
        stack.callback(brood.end)
        store = stack.enter_context(started_store(folder / "store")) if arguments.store else None
        print(table_row(HEAD), table_row("---" for _ in HEAD), sep="\n", flush=True)
        for trial in _trials(arguments, folder, brood, store):
            trial.run()
            for fault in trial.faults:
                print(f"{trial.kind}, seed {trial.seed}: {fault}", file=sys.stderr, flush=True)
            failed += bool(trial.faults)
            print(_row(trial), flush=True)
    return 1 if failed else 0


def _trials(
    arguments: argparse.Namespace, folder: Path, brood: Brood, store: ObjectStore | None
) -> Iterator[Trial]:
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        for kind in arguments.kinds:
            own = folder / f"{kind}-{seed}"
            cache = str(own / "cache") if store is None else store.url()
            yield Trial(
                kind, own, cache, arguments.texts, arguments.pace / 1000, seed, brood, store
            )


def _row(trial: Trial) -> str:
    found = trial.found
    kills = ", ".join(f"{count} {what}" for what, count in trial.kills.items())
    return table_row(
        (
            f"`{trial.kind}`",
            trial.seed,
            "disk" if trial.store is None else "store",
            f"{trial.texts:,}",
            kills,
            f"{trial.work:.3f}",
            f"{found.before:,}, {found.after:,}",
            found.orphans,
            f"{trial.seconds:.0f}",
            f"failures: {len(trial.faults) or 'none'}",
        )
    )


def _set_environment(folder: Path) -> None:
    """What all processes of the trials find: the engine, no network, and folders of their own."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        EMBCACHE_HOME=str(folder / "home"),
        HF_HUB_OFFLINE="1",
        RAY_TMPDIR=str(folder),  # short: a socket's path must be
        RAY_USAGE_STATS_ENABLED="0",
        RAY_BACKEND_LOG_LEVEL="fatal",
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=1, help="of all kinds")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--texts", type=int, default=8_000, help="of a trial")
    parser.add_argument("--pace", type=float, default=10.0, metavar="MS", help="for each text")
    parser.add_argument("--store", action="store_true", help="in the tests' object store")
    parser.add_argument("--folder", type=Path, help="where all is made; a short path")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
