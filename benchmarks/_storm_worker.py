"""What each process of a storm does, over and over, until it is killed: see `storm.py`."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from _known import encode, make_model, open_encoder, text_of

TEXTS_A_SECOND = 60  # by which the numbers of texts grow, so that there is always something new
RECENT = 3_000
OUTAGE_SECONDS = 240  # for which who opens a cache in a store tries again, in a storm
MAIN, OTHER = "model", "other"  # names of models, in those of their spaces

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a storm is.

    Attributes:
        folder: Has the model and the notes.
        began: When it began, `time.monotonic()`: a host's clock may jump.
        cache: The cache's directory, or its URL.
        unseen: For how many seconds what one host writes may not be seen by another one.
    """

    folder: Path
    began: float
    cache: str
    unseen: float = 0

    @property
    def in_a_store(self) -> bool:
        """Whether the cache is in an object store."""
        return "://" in self.cache

    @property
    def model(self) -> Path:
        """Directory of the model."""
        return self.folder / MAIN

    def newest(self) -> int:
        """How many texts there are by now."""
        return 500 + int(TEXTS_A_SECOND * (time.monotonic() - self.began))

    def noted(self, ago: float = 0) -> set[int]:
        """Numbers of all texts of which a process was told, so long ago, that they are cached."""
        numbers: set[int] = set()
        for file in self.folder.glob("notes-*"):
            *whole, _ = file.read_text(encoding="ascii").split("\n")  # a kill cuts a line
            for line in whole:
                noted, *told = map(int, line.split())
                if noted < time.monotonic() - ago:
                    numbers.update(told)
        return numbers

    def space(self, name: str = MAIN) -> Any:
        """The space of a model; None before there is one."""
        from embcache import Cache, CacheError

        try:
            spaces = Cache(self.cache).spaces()
        except CacheError as error:
            if "does not exist" not in str(error):
                raise
            return None  # a store has no empty folders; another process may make it just now
        return next((one for one in spaces if f"--{name}--" in one.name), None)


class Worker:
    """One of the processes: does one thing over and over.

    Args:
        place: Where the storm is.
        role: One of `storm.ROLES`, which is the name of the method that does it.
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
            self._encoder = self._open()
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
        Warmer(self._open()).run(
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
        noted = sorted(self.place.noted(self.place.unseen))
        if not noted:
            time.sleep(0.2)
            return
        chosen = self.rng.choices(noted, k=200)
        on_miss: dict[str, Any] = {"on_miss": "raise", "read_only": self.rng.random() < 0.5}
        encode(self._open(**on_miss), [text_of(number) for number in chosen])

    def other(self) -> None:
        """Fill a space of another model, and remove it, while the handle on it stays."""
        if self._encoder is None:
            self._encoder = self._open(make_model(self.place.folder, OTHER))
        numbers = self.rng.choices(range(1_000), k=self.rng.choice((1, 30, 300)))
        texts = [text_of(number) for number in numbers]
        for _ in range(2):
            encode(self._encoder, texts)
        if (space := self._opened(lambda: self.place.space(OTHER))) is None:
            raise AssertionError("the space that was just written to is not there")
        if self.rng.random() < 0.7:
            space.remove()

    def _space(self) -> Any:
        """The space that all write to; None before there is one."""
        space = self._opened(self.place.space)
        if space is None:
            time.sleep(0.2)
        return space

    def _open(self, model: Path | None = None, **arguments: Any) -> Any:
        """An encoder, of which no write fails without an error."""
        arguments = {"on_write_error": "raise", **arguments}
        made = model or self.place.model
        return self._opened(lambda: open_encoder(made, self.place.cache, **arguments))

    def _opened(self, make: Callable[[], T]) -> T:
        """What opens the cache; to open a store that does not answer is an error within seconds."""
        from embcache import CacheWriteError, UnreachableError

        until = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return make()
            except (UnreachableError, CacheWriteError):
                if not self.place.in_a_store or time.monotonic() > until:
                    raise
                time.sleep(1)

    def _note(self, numbers: list[int]) -> None:
        with (self.place.folder / f"notes-{self.number}").open("a", encoding="ascii") as notes:
            notes.write(" ".join(map(str, [int(time.monotonic()), *numbers])) + "\n")


def work(place: Place, role: str, number: int, seed: int) -> None:
    """The process: any error is written to a file `error-...`, and ends it."""
    os.environ["EMBCACHE_HOME"] = str(place.folder / "home")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Where it is, for `Storm`: where it hangs.
    where = (place.folder / f"where-{number}").open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, where)
    logging.basicConfig(level=logging.WARNING, filename=place.folder / f"log-{number}")
    try:
        Worker(place, role, number, seed).run()
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        (place.folder / f"error-{number}").write_text(f"{role} {number}: {text}", encoding="utf-8")
        os._exit(1)
