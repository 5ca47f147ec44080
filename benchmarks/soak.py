"""Random operations on one cache, against a dict, for as long as you like: `make soak`.

One process does what users do, in random order: encode, warm, look up, remove rows, check and mend,
compact, merge, export and import, damage a vector on disk, close and open again. A dict says what
the cache must hold: each call must find exactly these texts, not one more or less, and return
exactly their vectors. Memory and open file handles are sampled on the way; they must stay flat.

Prints a row of the table in docs/reliability.md; the exit status is 1 where something failed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median

from _known import encode, make_model, open_encoder, table_row, text_of, vector_of

NUMBERS = 6_000  # texts that there are; some are always cached, some never
MOST_HANDLES_MORE = 12
MOST_BYTES_MORE = 64 * 2**20
_WEIGHTS = {
    "encode": 30,
    "look_up": 20,
    "miss": 5,
    "warm": 10,
    "remove": 8,
    "damage": 4,
    "check": 4,
    "compact": 3,
    "merge": 3,
    "export_and_import": 1,
    "reopen": 8,
}


class SoakError(Exception):
    """The cache and the dict disagree."""


@dataclass
class Samples:
    """What the process held, over time.

    Attributes:
        resident: Bytes of memory.
        handles: Open file handles.
    """

    resident: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    def take(self) -> None:
        """Add one sample."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.handles.append(len(os.listdir("/proc/self/fd")))

    def early_and_late(self, values: list[int]) -> tuple[float, float]:
        """Medians of the second fifth and of the last one: the first fifth is warming up."""
        fifth = max(1, len(values) // 5)
        return median(values[fifth : 2 * fifth] or values), median(values[-fifth:])


class Soak:
    """A cache, the dict that it must agree with, and what can be done with both.

    Args:
        folder: Empty; where the cache is made.
        seed: Decides all operations.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.model = make_model(folder)
        self.cached: dict[str, bytes] = {}
        self.done: Counter[str] = Counter()
        self.reopen()

    def step(self) -> None:
        """One random operation.

        Raises:
            SoakError: The cache holds other texts than the dict.
            WrongVectorError: It returned a wrong vector.
        """
        [name] = self.rng.choices([*_WEIGHTS], [*_WEIGHTS.values()])
        operation: Callable[[], object] = getattr(self, name)
        operation()
        self.done[name] += 1

    def encode(self) -> None:
        """Any texts: those in the dict must be hits, the others not."""
        texts = self._any_texts(self.rng.choice((1, 5, 50, 400)))
        different = set(texts)
        known = sum(text in self.cached for text in different)
        encode(self.encoder, texts)
        self._expect("hits", self.encoder.stats.hits, known)
        self._keep(different)

    def look_up(self) -> None:
        """Texts of the dict, by an encoder that may neither write nor encode."""
        if texts := self._cached_texts(200):
            encode(open_encoder(self.model, self._cache, on_miss="raise"), texts)

    def miss(self) -> None:
        """A text that is not in the dict, by an encoder that may not encode."""
        from embcache import MissingTextsError

        texts = [text for text in self._any_texts(20) if text not in self.cached]
        if not texts:
            return
        try:
            encode(open_encoder(self.model, self._cache, on_miss="raise"), texts)
        except MissingTextsError as error:
            self._expect("missing texts", error.missing, len(set(texts)))
        else:
            raise SoakError(f"{len(texts)} texts are found that were never cached")

    def warm(self) -> None:
        """A stream of texts, as the command `warm` reads them."""
        from embcache.warm import TextBatch, Warmer

        texts = self._any_texts(self.rng.choice((50, 500)))
        new = len(set(texts) - self.cached.keys())
        batches = [TextBatch(texts[at : at + 70], "soak", "") for at in range(0, len(texts), 70)]
        stats = Warmer(self.encoder).run(batches)
        self._expect("warmed texts", stats.encoded, new)
        self._keep(texts)

    def remove(self) -> None:
        """Delete rows, and from the dict."""
        from embcache.identity.keys import text_keys

        if not (texts := sorted(set(self._cached_texts(self.rng.choice((1, 100, 600)))))):
            return
        space = self.encoder.open_pipeline().space
        assert space is not None
        space.drop(text_keys(self.encoder.identity.to_bytes(), "", texts))
        for text in texts:
            del self.cached[text]

    def damage(self) -> None:
        """Flip a bit of a vector on disk: by `check`, or the next call, it is a miss again."""
        for text in self._cached_texts(5):
            if self._flip(vector_of(text).tobytes()):
                if self.rng.random() >= 0.5:
                    encode(self.encoder, [text])  # dropped with a warning, and encoded again
                else:
                    self.check()  # a miss, unless an older file has an intact copy of the row
                    if not self._has(text):
                        del self.cached[text]
                return

    def check(self) -> None:
        """Check and mend."""
        from embcache import Cache

        if self.cached:
            report = Cache(self._cache).space().check(fix=True)
            if not report.ok:
                raise SoakError(f"check --fix leaves: {report}")

    def compact(self) -> None:
        """With files kept for an hour, or not."""
        from embcache import Cache

        if self.cached:
            kept = timedelta(hours=self.rng.choice((0, 0, 1)))
            Cache(self._cache).space().compact(older_than=kept)

    def merge(self) -> None:
        """Another cache of the same model into this one."""
        from embcache import Cache

        other, texts = self.folder / "other", self._any_texts(100)
        encode(open_encoder(self.model, other), texts)
        new = len(set(texts) - self.cached.keys())
        self._expect("merged rows", Cache(self._cache).merge(other).added, new)
        self._keep(texts)
        shutil.rmtree(other)

    def export_and_import(self) -> None:
        """All rows into a file, and from there into an empty cache."""
        from embcache import Cache

        if not self.cached:
            return
        file, other = self.folder / "rows.parquet", self.folder / "other"
        Cache(self._cache).space().export(file, overwrite=True)
        self._expect("imported rows", Cache(other).import_file(file).added, len(self.cached))
        encode(open_encoder(self.model, other, on_miss="raise"), self._cached_texts(100))
        shutil.rmtree(other)

    def reopen(self) -> None:
        """A new encoder; the old one is forgotten."""
        self.encoder = open_encoder(self.model, self._cache)

    def all_is_there(self) -> None:
        """Every text of the dict is a hit, and nothing else is in the cache."""
        from embcache import Cache

        self.check()
        if self.cached:
            encode(open_encoder(self.model, self._cache, on_miss="raise"), [*self.cached])
            self._expect("rows", len(Cache(self._cache).space()), len(self.cached))

    def _has(self, text: str) -> bool:
        from embcache.identity.keys import text_keys

        space = self.encoder.open_pipeline().space
        assert space is not None
        keys = text_keys(self.encoder.identity.to_bytes(), "", [text])
        return bool(space.refresh().find(keys)[0] >= 0)

    @property
    def _cache(self) -> Path:
        return self.folder / "cache"

    def _keep(self, texts: list[str] | set[str]) -> None:
        self.cached |= {text: vector_of(text).tobytes() for text in texts}

    def _any_texts(self, most: int) -> list[str]:
        """Some texts, with duplicates among them."""
        return [text_of(self.rng.randrange(NUMBERS)) for _ in range(self.rng.randint(1, most))]

    def _cached_texts(self, most: int) -> list[str]:
        known = sorted(self.cached)
        return self.rng.choices(known, k=self.rng.randint(1, most)) if known else []

    def _flip(self, wanted: bytes) -> bool:
        """Flip one bit of some bytes in the rows' files; False where no file has them."""
        for file in self._cache.glob("*.lance/data/*.lance"):
            if (at := file.read_bytes().find(wanted)) >= 0:
                with file.open("r+b") as opened:
                    opened.seek(at + self.rng.randrange(len(wanted)))
                    [value] = opened.read(1)
                    opened.seek(-1, os.SEEK_CUR)
                    opened.write(bytes([value ^ 1 << self.rng.randrange(8)]))
                return True
        return False

    def _expect(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise SoakError(f"{what}: {found}, and the dict says {expected}")


def main() -> int:
    """Soak and print; returns the exit status."""
    arguments = _parse_arguments()
    logging.basicConfig(level=logging.ERROR)  # every damage is a warning
    samples, failure = Samples(), ""
    with tempfile.TemporaryDirectory(prefix="embcache-soak-", dir=arguments.folder) as folder:
        os.environ["EMBCACHE_HOME"] = str(Path(folder, "home"))
        os.environ["HF_HUB_OFFLINE"] = "1"
        soak = Soak(Path(folder), arguments.seed)
        began = last = time.monotonic()
        try:
            while time.monotonic() - began < 60 * arguments.minutes:
                soak.step()
                if time.monotonic() - last > arguments.minutes * 60 / 200:
                    samples.take()
                    last = time.monotonic()
            soak.all_is_there()
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        samples.take()
    return report(soak, samples, arguments, failure)


def report(soak: Soak, samples: Samples, arguments: argparse.Namespace, failure: str) -> int:
    """Print the table's row; returns the exit status."""
    memory = samples.early_and_late(samples.resident)
    handles = samples.early_and_late(samples.handles)
    faults = [failure] if failure else []
    if memory[1] - memory[0] > MOST_BYTES_MORE:
        faults.append("memory grows")
    if handles[1] - handles[0] > MOST_HANDLES_MORE:
        faults.append("file handles grow")
    counted = ", ".join(f"{name} {count:,}" for name, count in soak.done.most_common())
    print(f"operations: {counted}", file=sys.stderr)
    print(
        table_row(
            (
                f"`make soak ARGS='--minutes {arguments.minutes:g} --seed {arguments.seed}'`",
                f"{soak.done.total():,} operations",
                f"failures: {'; '.join(faults) or 'none'}",
                f"memory {memory[0] / 1e6:,.0f} MB early, {memory[1] / 1e6:,.0f} MB late; "
                f"file handles {handles[0]:.0f} and {handles[1]:.0f}",
            )
        )
    )
    return 1 if faults else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the cache is made, for the time being")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
