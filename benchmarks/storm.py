"""Many processes on one cache, and one killed every second: `make storm`.

Eight processes evaluate, one warms, one compacts, one checks with --fix, and two read what others
were told is cached, all over the same texts. At random moments one of them gets a SIGKILL, and
another takes its place. What a process was told is cached, it notes in a file of its own after the
call has returned. In the end every noted text must be there with its vector, the cache must check
clean, and no process may have failed in any other way than by a signal.

Prints a row of the table in docs/reliability.md; the exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from _known import encode, make_model, open_encoder, table_row, text_of

ROLES = ("evaluate",) * 8 + ("warm", "compact", "check") + ("read",) * 2
TEXTS_A_SECOND = 60  # by which the numbers of texts grow, so that there is always something new
RECENT = 3_000
MOST_SECONDS = 120  # after which a process without any progress counts as stuck


@dataclass(frozen=True)
class Place:
    """Where a storm is.

    Attributes:
        folder: Has the cache, the model and the notes.
        began: When it began, `time.time()`.
    """

    folder: Path
    began: float

    @property
    def cache(self) -> Path:
        """Directory of the cache."""
        return self.folder / "cache"

    @property
    def model(self) -> Path:
        """Directory of the model."""
        return self.folder / "model"

    def newest(self) -> int:
        """How many texts there are by now."""
        return 500 + int(TEXTS_A_SECOND * (time.time() - self.began))

    def noted(self) -> set[int]:
        """Numbers of all texts of which some process was told that they are cached."""
        numbers: set[int] = set()
        for file in self.folder.glob("notes-*"):
            whole, _, _ = file.read_text(encoding="ascii").rpartition("\n")  # a kill cuts a line
            numbers.update(map(int, whole.split()))
        return numbers


class Worker:
    """One of the processes: does one thing over and over.

    Args:
        place: Where the storm is.
        role: One of `ROLES`, which is the name of the method that does it.
        number: Of the process, among all that ever were.
        seed: Decides the texts.
    """

    def __init__(self, place: Place, role: str, number: int, seed: int) -> None:
        self.place = place
        self.number = number
        self.rng = random.Random(f"{seed}/{number}")
        self.once: Callable[[], None] = getattr(self, role)
        self._encoder: Any = None

    def run(self) -> None:
        """Work until a kill, or until there is a file `stop`."""
        while not (self.place.folder / "stop").exists():
            self.once()
            (self.place.folder / f"alive-{self.number}").touch()

    def evaluate(self) -> None:
        """Some new texts and some old ones, as a task does."""
        if self._encoder is None or self.rng.random() < 0.1:
            self._encoder = open_encoder(self.place.model, self.place.cache)
        newest = self.place.newest()
        first = self.rng.randrange(max(1, newest - RECENT), newest)
        numbers = [*range(first, first + self.rng.choice((1, 30, 300)))]
        numbers += self.rng.choices(range(newest), k=30)
        encode(self._encoder, [text_of(number) for number in numbers])
        self._note(numbers)

    def warm(self) -> None:
        """A stream of texts."""
        from embcache.warm import TextBatch, Warmer

        newest = self.place.newest()
        numbers = [*range(max(0, newest - RECENT // 2), newest)]
        texts = [text_of(number) for number in numbers]
        Warmer(open_encoder(self.place.model, self.place.cache)).run(
            [TextBatch(texts[at : at + 200], "storm", "") for at in range(0, len(texts), 200)]
        )
        self._note(numbers)

    def compact(self) -> None:
        """With old files kept for an hour; or for a second, as with a clock that has jumped."""
        if (space := self._space()) is not None:
            space.compact(older_than=timedelta(seconds=self.rng.choice((1, 3600))))
        time.sleep(self.rng.uniform(0, 1))

    def check(self) -> None:
        """Check and mend; there is nothing to mend but duplicates."""
        if (space := self._space()) is None:
            return
        report = space.check(fix=True)
        if not report.ok or report.damaged or report.misfits or report.problems:
            raise AssertionError(f"check finds damage where there is none: {report}")

    def read(self) -> None:
        """What others were told is cached, without writing or encoding."""
        noted = sorted(self.place.noted())
        if not noted:
            time.sleep(0.2)
            return
        chosen = self.rng.choices(noted, k=200)
        on_miss: dict[str, Any] = {"on_miss": "raise", "read_only": self.rng.random() < 0.5}
        encoder = open_encoder(self.place.model, self.place.cache, **on_miss)
        encode(encoder, [text_of(number) for number in chosen])

    def _space(self) -> Any:
        """The one space; None before there is one."""
        from embcache import Cache

        spaces = Cache(self.place.cache).spaces() if self.place.cache.exists() else []
        if not spaces:
            time.sleep(0.2)
        return spaces[0] if spaces else None

    def _note(self, numbers: list[int]) -> None:
        with (self.place.folder / f"notes-{self.number}").open("a", encoding="ascii") as notes:
            notes.write(" ".join(map(str, numbers)) + "\n")


def work(place: Place, role: str, number: int, seed: int) -> None:
    """The process: any error is written to a file `error-...`, and ends it."""
    os.environ["EMBCACHE_HOME"] = str(place.folder / "home")
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.basicConfig(level=logging.WARNING, filename=place.folder / f"log-{number}")
    try:
        Worker(place, role, number, seed).run()
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        (place.folder / f"error-{number}").write_text(f"{role} {number}: {text}", encoding="utf-8")
        os._exit(1)


@dataclass
class Storm:
    """All processes of a storm.

    Attributes:
        place: Where it is.
        seed: Decides who is killed, and the texts.
        running: The processes by number, each with its role.
        kills: How many were killed, by role.
        failures: What went wrong.
    """

    place: Place
    seed: int
    running: dict[int, tuple[str, BaseProcess]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def blow(self, seconds: float, kills_a_minute: float) -> None:
        """Start all, kill some, wait for the others.

        Args:
            seconds: How long.
            kills_a_minute: How many processes are killed.
        """
        rng = random.Random(self.seed)
        # Said at each fork of the server, in which nothing has been used yet.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:lancedb fork support:RuntimeWarning")
        self._context = multiprocessing.get_context("forkserver")
        # Imports take seconds, and a kill is to fall into work. lancedb mends itself after a fork.
        modules = ["embcache.cache", "embcache.warm", "embcache.tools.check", "lancedb", "_known"]
        self._context.set_forkserver_preload(modules)
        self._numbers = iter(range(10**9))
        for role in ROLES:
            self._start(role)
        self._wait_until_all_work()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self.failures:
            time.sleep(rng.expovariate(kills_a_minute / 60))
            self._look_after()
            self._kill_one(rng, self._at_work())
        (self.place.folder / "stop").touch()
        self._finish()

    def _start(self, role: str) -> None:
        number = next(self._numbers)
        process = self._context.Process(target=work, args=(self.place, role, number, self.seed))
        process.start()
        self.running[number] = (role, process)

    def _wait_until_all_work(self) -> None:
        """Imports take a minute where two cores make them for all."""
        ends = time.monotonic() + 5 * MOST_SECONDS
        while len(self._at_work()) < len(ROLES) and time.monotonic() < ends and not self.failures:
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
            if process.exitcode is not None:
                self.failures.append(self._error(role, number))
            alive = self.place.folder / f"alive-{number}"
            if alive.exists() and time.time() - alive.stat().st_mtime > MOST_SECONDS:
                self.failures.append(f"{role} {number} is stuck")

    def _finish(self) -> None:
        for number, (role, process) in self.running.items():
            process.join(MOST_SECONDS)
            if process.exitcode is None:
                self.failures.append(f"{role} {number} does not end")
                process.kill()
            elif process.exitcode:
                self.failures.append(self._error(role, number))

    def _error(self, role: str, number: int) -> str:
        file = self.place.folder / f"error-{number}"
        return file.read_text(encoding="utf-8") if file.exists() else f"{role} {number} died"


def verify(place: Place) -> tuple[int, list[str]]:
    """Look everything up that was noted; returns how many texts, and what is wrong."""
    from embcache import Cache

    numbers = sorted(place.noted())
    faults = []
    try:
        for at in range(0, len(numbers), 10_000):
            part = [text_of(number) for number in numbers[at : at + 10_000]]
            encode(open_encoder(place.model, place.cache, on_miss="raise"), part)
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    report = Cache(place.cache).space().check()
    if not report.ok:
        faults.append(str(report))
    warnings = "".join(f.read_text(encoding="utf-8") for f in place.folder.glob("log-*"))
    if "checksum" in warnings:
        faults.append(f"rows failed their checksum, and none was damaged: {warnings[:2000]}")
    return len(numbers), faults


def main() -> int:
    """Blow, verify and print; returns the exit status."""
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory(prefix="embcache-storm-", dir=arguments.folder) as folder:
        place = Place(Path(folder), time.time())
        os.environ["EMBCACHE_HOME"] = str(place.folder / "home")
        make_model(place.folder)
        storm = Storm(place, arguments.seed)
        storm.blow(60 * arguments.minutes, arguments.kills)
        texts, faults = verify(place)
    faults = storm.failures + faults
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"killed: {dict(storm.kills)}", file=sys.stderr)
    options = f"--minutes {arguments.minutes:g} --kills {arguments.kills:g} --seed {arguments.seed}"
    print(
        table_row(
            (
                f"`make storm ARGS='{options}'`",
                f"{len(ROLES)} processes, {storm.kills.total():,} kills",
                f"failures: {len(faults) or 'none'}",
                f"{texts:,} texts acknowledged, "
                + ("none lost, none wrong" if not faults else "see standard error"),
            )
        )
    )
    return 1 if faults else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--kills", type=float, default=60.0, metavar="A_MINUTE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache is made, for the time being")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
