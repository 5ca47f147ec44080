"""Many processes on one cache, and one killed every second: `make storm`.

Eight processes evaluate, one warms, one compacts, one checks with --fix, and two read what others
were told is cached, all over the same texts. At random moments one of them gets a SIGKILL, and
another takes its place. What a process was told is cached, it notes in a file of its own after the
call has returned. In the end every noted text must be there with its vector, the cache must check
clean, and no process may have failed in any other way than by a signal.

With --store the cache is in an object store, the tests' SeaweedFS, which is killed too, and started
again seconds later with what it holds; with --cache in whatever store the URL names. There it is
eight processes, four of which write: SeaweedFS makes losers of a contended PUT wait for a second.

With --two-hosts the cache is in a folder that two hosts have mounted, see `_storm_hosts.py`: half
of the processes are on each, neither sees the other's locks, and each sees late what the other
does. --clock says how wrong the second one's clock is.

Prints a row of the table in docs/reliability.md; the exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _known import encode, make_model, open_encoder, table_row, text_of
from _storm_hosts import CLOCKS, UNSEEN_SECONDS, Clock, mounted_twice
from _storm_store import Killer, finish_with, started_store
from _storm_worker import OUTAGE_SECONDS, Place, work

if TYPE_CHECKING:
    from embcache.tools.check import CheckReport

ROLES = ("evaluate",) * 8 + ("warm", "compact", "check") + ("read",) * 2
STORE_ROLES = ("evaluate",) * 3 + ("warm", "read", "check", "compact", "other")
HOST_ROLES = ("evaluate",) * 3 + ("warm", "compact", "check", "read")  # on each of two
JUMPS = 0.05  # of a host's clock, by killed process
MOST_SECONDS = 120  # after which a process without any progress counts as stuck
FORK_WARNINGS = "ignore:lancedb fork support:RuntimeWarning,ignore:lance is not fork-safe"


@dataclass
class Storm:
    """All processes of a storm.

    Attributes:
        place: Where it is.
        roles: Of its processes.
        seed: Decides who is killed, and the texts.
        first: Number of the first process.
        clock: What the processes go by; None for the machine's own.
        running: The processes by number, each with its role.
        kills: How many were killed, by role.
        failures: What went wrong.
    """

    place: Place
    roles: tuple[str, ...]
    seed: int
    first: int = 0
    clock: Clock | None = None
    running: dict[int, tuple[str, BaseProcess]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def patience(self) -> float:
        """Seconds after which a process without any progress counts as stuck."""
        # On two hosts all versions stay, and a check opens each, on a slow file system.
        slow = self.place.in_a_store or self.place.unseen
        return MOST_SECONDS + (OUTAGE_SECONDS if slow else 0)

    def blow(self, seconds: float, kills_a_minute: float, killer: Killer | None = None) -> None:
        """Start all, kill some, wait for the others.

        Args:
            seconds: How long.
            kills_a_minute: How many processes are killed.
            killer: Kills the store.
        """
        rng = random.Random(self.seed)
        # Said at forks of the server, in which nothing has been used yet.
        os.environ.setdefault("PYTHONWARNINGS", FORK_WARNINGS)
        # The fork server is started without this script's folder, and passes over what it misses.
        paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._context = multiprocessing.get_context("forkserver")
        # Imports take seconds, and a kill is to fall into work. lancedb mends itself after a fork.
        modules = [
            "embcache.cache",
            "embcache.warm",
            "embcache.tools.check",
            "lancedb",
            "_storm_worker",
        ]
        self._context.set_forkserver_preload(modules)
        self._numbers = itertools.count(self.first)
        if self.clock is not None:
            self.clock.begin()
        for role in self.roles:
            self._start(role)
        self._wait_until_all_work()
        ends = time.monotonic() + seconds
        if killer is not None:
            killer.begin(seconds)
        while time.monotonic() < ends and not self.failures and not self._stopped:
            time.sleep(rng.expovariate(kills_a_minute / 60))
            self._look_after()
            if self.clock is not None and rng.random() < JUMPS:
                self.clock.jump()
            self._kill_one(rng, self._at_work())
        if killer is not None:
            killer.end()
        (self.place.folder / "stop").touch()
        self._finish()

    @property
    def _stopped(self) -> bool:
        """Whether the other host has stopped all."""
        return (self.place.folder / "stop").exists()

    def _start(self, role: str) -> None:
        number = next(self._numbers)
        process = self._context.Process(target=work, args=(self.place, role, number, self.seed))
        process.start()
        self.running[number] = (role, process)

    def _wait_until_all_work(self) -> None:
        """Imports take a minute where two cores make them for all."""
        ends = time.monotonic() + 5 * MOST_SECONDS
        while len(self._at_work()) < len(self.roles) and time.monotonic() < ends:
            if self.failures or self._stopped:
                return
            time.sleep(0.5)
            self._look_after()

    def _at_work(self) -> list[int]:
        """Processes that are not still importing: a kill is to fall into work."""
        return [n for n in self.running if (self.place.folder / f"alive-{n}").exists()]

    def _kill_one(self, rng: random.Random, among: list[int]) -> None:
        """Kill one and start another in its place."""
        if not among:
            return
        number = rng.choice(among)
        role, process = self.running.pop(number)
        process.kill()
        process.join()
        self.kills[role] += 1
        self._start(role)

    def _look_after(self) -> None:
        """Note who failed, or makes no progress."""
        for number, (role, process) in self.running.items():
            if process.exitcode is not None and (process.exitcode or not self._stopped):
                self.failures.append(self._error(role, number))
            alive = self.place.folder / f"alive-{number}"
            if alive.exists() and time.time() - alive.stat().st_mtime > self.patience:
                self.failures.append(f"{role} {number} is stuck: {self._where(number)}")

    def _finish(self) -> None:
        for number, (role, process) in self.running.items():
            process.join(self.patience)
            if process.exitcode is None:
                self.failures.append(f"{role} {number} does not end: {self._where(number)}")
                process.kill()
            elif process.exitcode:
                self.failures.append(self._error(role, number))

    def _where(self, number: int) -> str:
        """What all threads of a process are doing."""
        file = self.place.folder / f"where-{number}"
        if not file.exists():
            return "it does not work yet"
        pid = self.running[number][1].pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        time.sleep(2)
        return file.read_text(encoding="utf-8")

    def _error(self, role: str, number: int) -> str:
        file = self.place.folder / f"error-{number}"
        return file.read_text(encoding="utf-8") if file.exists() else f"{role} {number} died"


def blow_on_host(place: Place, host: int, arguments: argparse.Namespace, results: Any) -> None:
    """The part of a storm that is on one of two hosts, in a process of its own."""
    clock = Clock(place.folder, arguments.clock, arguments.seed) if host else None
    storm = Storm(place, HOST_ROLES, arguments.seed + host * 1_000, host * 10**6, clock)
    try:
        storm.blow(60 * arguments.minutes, arguments.kills / 2)
    except BaseException as error:
        storm.failures.append(f"host {host}: {type(error).__name__}: {error}")
    (place.folder / "stop").touch()
    results.put((storm.kills, storm.failures))


def blow_on_two_hosts(place: Place, mounts: list[Path], arguments: argparse.Namespace) -> Storm:
    """A storm with half of its processes on each of two hosts."""
    context = multiprocessing.get_context("spawn")
    both = Storm(place, HOST_ROLES * 2, arguments.seed)
    results = context.SimpleQueue()
    Clock(place.folder, arguments.clock, arguments.seed)  # says what is missing
    hosts = []
    for host, mount in enumerate(mounts):
        there = replace(place, cache=str(mount / "cache"))
        hosts.append(context.Process(target=blow_on_host, args=(there, host, arguments, results)))
        hosts[-1].start()
    for _ in hosts:
        kills, failures = results.get()
        both.kills += kills
        both.failures += failures
    for one in hosts:
        one.join()
    return both


def verify(place: Place) -> tuple[int, list[str]]:
    """Look everything up that was noted; returns how many texts, and what is wrong."""
    numbers = sorted(place.noted())
    faults = []
    try:
        for at in range(0, len(numbers), 10_000):
            part = [text_of(number) for number in numbers[at : at + 10_000]]
            encode(open_encoder(place.model, place.cache, on_miss="raise"), part)
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    if (space := place.space()) is None:
        return len(numbers), [*faults, "there is no space"]
    report: CheckReport = space.check()
    if not report.ok:
        faults.append(str(report))
    print(f"{report.rows:,} rows, {report.duplicates:,} of them duplicates", file=sys.stderr)
    warnings = "".join(f.read_text(encoding="utf-8") for f in place.folder.glob("log-*"))
    if "checksum" in warnings:
        faults.append(f"rows failed their checksum, and none was damaged: {warnings[:2000]}")
    return len(numbers), faults


def main() -> int:
    """Blow, verify and print; returns the exit status."""
    arguments = _parse_arguments()
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="embcache-storm-", dir=arguments.folder)
        )
        os.environ["EMBCACHE_HOME"] = str(Path(folder) / "home")
        cache, killer = arguments.cache or str(Path(folder) / "cache"), None
        if arguments.store:
            store = stack.enter_context(started_store(Path(folder) / "store"))
            cache, killer = store.url(), Killer(store, arguments.store_kills, arguments.seed)
        mounts: list[Path] = []
        if arguments.two_hosts:
            served, mounts = stack.enter_context(mounted_twice(Path(folder)))
            cache = str(served / "cache")
        unseen = UNSEEN_SECONDS if mounts else 0
        place = Place(Path(folder), time.monotonic(), cache, unseen)
        make_model(place.folder)
        if mounts:
            storm = blow_on_two_hosts(place, mounts, arguments)
        else:
            storm = Storm(place, STORE_ROLES if place.in_a_store else ROLES, arguments.seed)
            storm.blow(60 * arguments.minutes, arguments.kills, killer)
        texts, faults = verify(place)
        faults = storm.failures + faults
        if place.in_a_store and not faults:
            faults = finish_with(place)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"killed: {dict(storm.kills)}", file=sys.stderr)
    print(_row(arguments, storm, killer, texts, len(faults)))
    return 1 if faults else 0


def _row(
    arguments: argparse.Namespace, storm: Storm, killer: Killer | None, texts: int, faults: int
) -> str:
    options = f"--minutes {arguments.minutes:g} --kills {arguments.kills:g}"
    if arguments.cache:
        options = f"--cache {arguments.cache} {options}"
    if killer is not None:
        options = f"--store {options} --store-kills {killer.kills}"
    if arguments.two_hosts:
        options = f"--two-hosts --clock {arguments.clock} {options}"
    kills = f"{len(storm.roles)} processes, {storm.kills.total():,} kills"
    if killer is not None:
        kills += f", {killer.done} of the store"
    return table_row(
        (
            f"`make storm ARGS='{options} --seed {arguments.seed}'`",
            kills,
            f"failures: {faults or 'none'}",
            f"{texts:,} texts acknowledged, "
            + ("none lost, none wrong" if not faults else "see standard error"),
        )
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--kills", type=float, default=60.0, metavar="A_MINUTE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache is made, for the time being")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--store", action="store_true", help="in the tests' object store")
    where.add_argument(
        "--cache", metavar="URL", help="a new cache in a store, with the environment's credentials"
    )
    where.add_argument("--two-hosts", action="store_true", help="in a folder that two have mounted")
    parser.add_argument("--clock", choices=CLOCKS, default="right", help="of the second host")
    parser.add_argument("--store-kills", type=int, default=0, help="how often --store is killed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
