"""Measures contenders in turns, each sample in a process of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from _process import Process
from _report import Goal, Part, Samples
from _setup import Setup
from rich.console import Console

progress = Console(stderr=True)


@dataclass(frozen=True)
class Peer:
    """Who takes part.

    Attributes:
        label: What the tables call it.
        where: What does the work: `module:function`, see `_contender`.
        fill: What fills its cache before; "" for nothing.
        package: What must be installed for it; "" for what always is.
        rival: See `Samples`.
        most_rounds: In how many rounds it takes part at most: fewer for one that takes long, and
            whose ratio is far from any goal; None for all.
    """

    label: str
    where: str
    fill: str = ""
    package: str = ""
    rival: bool = True
    most_rounds: int | None = None


@dataclass(frozen=True)
class Plan:
    """How much is measured, and where.

    Attributes:
        folder: An empty folder for the caches and vectors of one part.
        quick: Whether it is a smoke test: few texts, one round.
        rounds: How many rounds, if not as many as the part has by itself.
        keys: How many keys the part `scale` simulates, if that is more than it makes for real.
        model: Another model that a real engine loads, beside all-MiniLM-L6-v2; "" for none.
    """

    folder: Path
    quick: bool = False
    rounds: int | None = None
    keys: int = 10_000_000
    model: str = ""

    def pick_rounds(self, usual: int) -> int:
        """How many rounds a part has that usually has so many."""
        return self.rounds or (1 if self.quick else usual)


Measured = tuple[list[Part], list[Goal]]
Measure = Callable[[Plan], Measured]


def make_part(name: str, title: str, texts: int, peers: dict[str, Peer]) -> Part:
    """A part without samples; who cannot take part is named in a note.

    Args:
        name: A word for it.
        title: What is done, in words.
        texts: How many texts a call deals with.
        peers: Who takes part, by name; what is not installed is taken out.
    """
    part = Part(name, title, texts, {})
    for key, peer in list(peers.items()):
        if peer.package and not _installed(peer.package):
            del peers[key]
            part.notes.append(f"{peer.label}: not installed: pip install {peer.package}")
        else:
            part.contenders[key] = Samples(peer.label, peer.rival)
    return part


def fill(peers: dict[str, Peer], setup: Setup, say: str) -> None:
    """Fill the caches of all who take part.

    Args:
        peers: Who takes part, by name.
        setup: What they are told.
        say: Which part it is, for the terminal.
    """
    for where in dict.fromkeys(peer.fill for peer in peers.values() if peer.fill):
        run_once(where, setup, f"{say}: {where} fills its cache")


def run_once(where: str, setup: Setup, say: str) -> float:
    """Have a contender work once in a process of its own; returns the seconds.

    Args:
        where: Which: `module:function`.
        setup: What it is told.
        say: What is going on, for the terminal.
    """
    progress.print(say, highlight=False)
    with Process(where, setup) as process:
        return process.call()


def one_by_one(
    part: Part, peers: dict[str, Peer], setup: Setup, rounds: int, *, from_start: bool = False
) -> None:
    """Measure the first call of a new process of each contender, round by round.

    Args:
        part: Gets the samples.
        peers: Who takes part, by name.
        setup: What they are told.
        rounds: How many processes each contender gets.
        from_start: Whether what comes before the call counts, from the start of the process on.
    """
    for number in range(rounds):
        # In another order each time: what one leaves in memory, the next one may gain from.
        for key in random.Random(number).sample(sorted(peers), len(peers)):
            peer = peers[key]
            if peer.most_rounds is not None and number >= peer.most_rounds:
                continue
            progress.print(_say(part, number, rounds, peer), highlight=False)
            with Process(peer.where, replace(setup, turn=number)) as process:
                seconds = process.call()
            samples = part.contenders[key]
            samples.seconds.append(seconds + from_start * process.before_s)
            if not from_start:
                samples.before_s.append(process.before_s)


def side_by_side(
    parts: list[Part],
    peers: dict[str, Peer],
    setup: Setup,
    rounds: int,
    check: Callable[[int], None],
    rest_s: float,
) -> None:
    """Measure contenders that take long to get ready, which are started once a round, in turns.

    Args:
        parts: One for each batch of the setup; get the samples.
        peers: Who takes part, by name.
        setup: What they are told.
        rounds: How many processes each contender gets.
        check: Called after each turn with the number of its batch.
        rest_s: Seconds before each call in which nobody has anything to do.
    """
    for number in range(rounds):
        with ExitStack() as stack:
            processes = {}
            for key, peer in peers.items():
                progress.print(f"{_say(parts[0], number, rounds, peer)} starts", highlight=False)
                told = replace(setup, turn=number)
                processes[key] = stack.enter_context(Process(peer.where, told))
                for part in parts:
                    part.contenders[key].before_s.append(processes[key].before_s)
            for batch, part in enumerate(parts):
                for key in random.Random(f"{number} {batch}").sample(sorted(peers), len(peers)):
                    peer = peers[key]
                    progress.print(_say(part, number, rounds, peer), highlight=False)
                    time.sleep(rest_s)
                    part.contenders[key].seconds.append(processes[key].call())
                check(batch)


def _say(part: Part, number: int, rounds: int, peer: Peer) -> str:
    return f"{part.name}, round {number + 1} of {rounds}: {peer.label}"


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
