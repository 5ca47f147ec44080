"""What a cache in an object store costs, in seconds, requests and bytes: `make bench-store`.

A store is started here, the tests' SeaweedFS, and a proxy before it that lets each request take 20
ms longer, which a store of another building does and one on this machine does not. Another store
is measured with `--cache s3://bucket/somewhere-new`, with credentials from the environment: its own
distance then, and no other; what is written there stays there, for you to delete. Requests and
bytes are what `encoder.stats` counts. `--parts fetch commit` measures some parts only; each takes
up to a minute on two cores.

Expected, with 20 ms:

- warm: a warm `encode()` of 50,000 texts, in ten fragments, takes at most 3 times as long as from
  disk where the space is open, and a second more where it has to be opened first; at most 100
  requests, opening included.
- open: requests grow with the fragments, not with the keys: at most 12 and 3 a fragment; bytes are
  at most 20 a key and 100 kB a fragment. A million keys in ten fragments open within 2 s. (Missed
  by 5 kB with 10,000 keys: to see that the schema fits, the end of a file is read twice.)
- fetch: whatever share of a fragment's rows is wanted, reading them takes at most 1.5 times as long
  as the faster of two other ways: each row by itself, or a scan of all. (Missed at 2 % of 384
  components, 1.8: 410 requests keep two cores busy that the store is on as well.)
- readahead: 16 fragments of 1,000 rows are scanned at least 3 times as fast as one after the other,
  and large ones take at most 256 MB.
- commit: an append of 1,000 rows is at most 10 requests and takes at most half a second.

A figure that is missed is printed and no failure.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
from _distance import Distance, distance
from _inputs import DTYPE, WARM_TOKENS, as_loader, make_texts, model_path, task
from _report import machine
from rich import box
from rich.console import Console
from rich.table import Table

from embcache import VllmEncoderWrapper
from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Database, Location, Rows, Space, values
from embcache.store.fetching import Readahead, readahead
from embcache.store.reader import Reader
from embcache.store.traffic import Traffic

IDENTITY = Identity("benchmark/none", "0" * 40, "float32")
FRACTIONS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
ROWS = 50_000
DIMS = (384, 1024)
KEYS = (10_000, 100_000, 1_000_000)
COMMIT_ROWS = 1000
ONE_BY_ONE = Readahead(2, 1, None)

console = Console()
if not console.is_terminal:
    console = Console(width=150)
progress = Console(stderr=True)


@dataclass
class Places:
    """Where is measured.

    Attributes:
        folder: On this machine's disk.
        url: In the store; nothing uses it yet.
        options: What the store is opened with.
        far: What can make it farther away; None for a store that is as far as it is.
        delays: Seconds that are added to a request, one after the other.
        missed: What was not as expected.
    """

    folder: Path
    url: str
    options: dict[str, str]
    far: Distance | None
    delays: tuple[float, ...]
    missed: list[str] = field(default_factory=list)

    def at(self, delay: float) -> str:
        """Move the store there, and say what it is called."""
        if self.far is None:
            return "store"
        self.far.set(delay)
        return f"store, {1000 * delay:.0f} ms"

    def expect(self, met: bool, text: str) -> None:
        """Note what is not as expected."""
        if not met:
            self.missed.append(text)


@dataclass
class Cost:
    """What something cost.

    Attributes:
        seconds: How long it took.
        traffic: What went to and fro.
    """

    seconds: float
    traffic: Traffic

    def cells(self) -> list[str]:
        """Seconds, requests and megabytes."""
        sent = self.traffic
        return [f"{self.seconds:.3f}", f"{sent.requests:,}", f"{sent.bytes / 1e6:.1f}"]


def main() -> int:
    """Measure and print; returns the exit status."""
    arguments = _parse_arguments()
    logging.getLogger("embcache").setLevel(logging.ERROR)
    with places(arguments) as found:
        for name in arguments.parts:
            with progress.status(name):
                PARTS[name](found, arguments.rounds)
    console.print("as expected" if not found.missed else "MISSED: " + "; ".join(found.missed))
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), highlight=False)
    return 0


@contextmanager
def places(arguments: argparse.Namespace) -> Iterator[Places]:
    """The disk and the store; a store of our own is gone afterwards, and so is what is on disk."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embcache-bench-")))
        if arguments.cache:
            yield Places(folder, f"{arguments.cache}/{uuid4().hex}", {}, None, (0.0,))
            return
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from tests.object_store import ObjectStore

        (folder / "store").mkdir()
        store = ObjectStore(folder / "store")
        store.start()
        stack.callback(store.kill)
        far = stack.enter_context(distance(store.port))
        options = {**store.options, "aws_endpoint": far.endpoint}
        yield Places(folder, store.url("bench"), options, far, (0.0, arguments.delay / 1000))


def timed(location: Location, do: Callable[..., Any], *given: Any) -> Cost:
    """What something costs.

    Args:
        location: Whose traffic is counted.
        do: What is measured.
        given: Its arguments.
    """
    before, began = location.traffic, time.perf_counter()
    do(*given)
    return Cost(time.perf_counter() - began, location.traffic.since(before))


def middle(costs: list[Cost]) -> Cost:
    """Median seconds, and the last one's traffic, which is the same each time."""
    return Cost(median(cost.seconds for cost in costs), costs[-1].traffic)


def a_space(
    place: str | Path, options: dict[str, str], identity: Identity = IDENTITY, **kwargs: Any
) -> Space:
    """A space that compacts nothing by itself."""
    database = Database(place, options, writable=True)
    return database.space(identity, "none", "none", compact_automatically=False, **kwargs)


def some_rows(identity: Identity, texts: list[str], dim: int, seed: int = 0) -> Rows:
    """Rows of random vectors."""
    vectors = np.random.default_rng(seed).standard_normal((len(texts), dim), np.float32)
    columns = {"text": texts, "prompt": ""}
    return Rows(text_keys(identity.to_bytes(), "", texts), vectors, columns)


def print_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    """Print a table, in Markdown."""
    console.print(f"\n{title}\n", highlight=False)
    table = Table(*columns, box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)


def warm(found: Places, rounds: int) -> None:
    """A warm `encode()`, from disk and from the store, in turns."""
    texts = make_texts(ROWS, WARM_TOKENS)
    kinds: dict[str, tuple[Any, dict[str, str], float]] = {"disk": (found.folder / "warm", {}, 0.0)}
    for delay in found.delays:
        kinds[found.at(delay)] = (f"{found.url}/warm", found.options, delay)
    found.at(0.0)
    for place, options, delay in kinds.values():
        if delay == 0.0:
            identity = an_encoder(place, options).identity
            space = a_space(place, options, identity)
            for part in range(10):
                space.add(some_rows(identity, texts[part::10], 384))
    first: dict[str, list[Cost]] = {name: [] for name in kinds}
    again: dict[str, list[Cost]] = {name: [] for name in kinds}
    loader = as_loader(texts)
    for _ in range(rounds):
        for name, (place, options, delay) in kinds.items():
            found.at(delay)
            encoder = an_encoder(place, options)
            for costs in (first, again):
                began = time.perf_counter()
                encoder.encode(loader, show_progress_bar=False, **task())
                stats = encoder.stats
                sent = Traffic(stats.requests, stats.bytes)
                costs[name].append(Cost(time.perf_counter() - began, sent))
    disk = [median(c.seconds for c in costs["disk"]) for costs in (first, again)]
    rows = []
    for name in kinds:
        row = [name]
        for costs, base in zip((first, again), disk, strict=True):
            cost = middle(costs[name])
            row += [*cost.cells(), f"{cost.seconds / base:.2f}"]
        rows.append(row)
    cells = ("requests", "MB", "disk = 1")
    columns = ("place", "first, s", *cells, "again, s", *cells)
    print_table(f"warm encode() of {ROWS:,} texts, 384 components, 10 fragments", columns, rows)
    last = list(kinds)[-1]
    opened, later = middle(first[last]), middle(again[last])
    found.expect(later.seconds <= 3 * disk[1], f"warm: {later.seconds / disk[1]:.1f} times disk")
    found.expect(opened.seconds <= 3 * disk[0] + 1, f"warm, first: {opened.seconds:.1f} s")
    found.expect(opened.traffic.requests <= 100, f"warm: {opened.traffic.requests} requests")


def an_encoder(place: Any, options: dict[str, str]) -> VllmEncoderWrapper:
    """An encoder that encodes nothing."""
    return VllmEncoderWrapper(
        model_path(), dtype=DTYPE, cache_path=place, storage_options=options, on_miss="raise"
    )


def opening(found: Places, rounds: int) -> None:
    """Opening spaces of more and more keys."""
    rows = []
    for keys in KEYS:
        parts = max(1, keys // 100_000)
        where: list[tuple[Any, dict[str, str]]] = [(found.folder / f"open-{keys}", {})]
        where += [(f"{found.url}/open-{keys}", found.options)]
        found.at(0.0)
        for place, options in where:
            space = a_space(place, options, store_text=False)
            for part in range(parts):
                texts = [f"{part} {number}" for number in range(keys // parts)]
                space.add(some_rows(IDENTITY, texts, 8))
        for place, options in where:
            for delay in found.delays if options or found.far is None else (0.0,):
                name = found.at(delay) if place is where[1][0] else "disk"
                opened = [open_once(place, options) for _ in range(rounds)]
                cost = middle(opened)
                rows.append([f"{keys:,} in {parts}", name, *cost.cells()])
        sent = cost.traffic
        found.expect(sent.requests <= 12 + 3 * parts, f"open: {sent.requests} requests")
        found.expect(sent.bytes <= 20 * keys + 100_000 * parts, f"open: {sent.bytes:,} bytes")
    found.expect(cost.seconds <= 2, f"open: {cost.seconds:.1f} s")
    columns = ("keys and fragments", "place", "seconds", "requests", "MB")
    print_table("opening a space to read it, the store's being asked included", columns, rows)


def open_once(place: Any, options: dict[str, str]) -> Cost:
    """What it costs to find a space and to read its keys."""
    location = Location.of(place, options)

    def look() -> None:
        database = Database(location, writable=False)
        database.space(IDENTITY, "none", "none").refresh()

    return timed(location, look)


def fetch(found: Places, rounds: int) -> None:
    """Scattered rows of one fragment: as they are read, taken singly, or picked out of a scan."""
    rows = []
    for dim in DIMS:
        found.at(0.0)
        space = a_space(f"{found.url}/fetch-{dim}", found.options)
        space.add(some_rows(IDENTITY, [f"text {number}" for number in range(ROWS)], dim))
        reader = space.open()
        ways = [partial(values.fetched, reader), partial(values.taken, reader)]
        exhaust(ways[1], np.arange(0, ROWS, ROWS // 10))  # the file's end too
        for delay in found.delays:
            name = found.at(delay)
            scanned = middle([timed(reader.location, scan, reader) for _ in range(rounds)])
            for fraction in FRACTIONS:
                wanted = scattered(int(ROWS * fraction))
                both: list[list[Cost]] = [[], []]
                for _ in range(rounds):
                    for how, costs in zip(ways, both, strict=True):
                        costs.append(timed(reader.location, exhaust, how, wanted))
                fetched, taken = map(middle, both)
                cells = [*fetched.cells(), *taken.cells(), *scanned.cells()]
                rows.append([f"{dim}, {name}", f"{fraction:.1%}", *cells])
                slow = fetched.seconds / min(taken.seconds, scanned.seconds)
                found.expect(slow <= 1.5, f"fetch {dim}, {name}, {fraction:.1%}: {slow:.1f}")
    cells = ["requests", "MB"]
    columns = ["components, place", "rows", "as read, s", *cells, "singly, s", *cells]
    columns += ["scan, s", *cells]
    print_table(f"scattered rows of a fragment of {ROWS:,}", columns, rows)


def exhaust(how: Callable[..., Iterator[Any]], wanted: Any) -> None:
    """Fetch rows of a reader."""
    for _ in how(wanted, ["vector", "checksum"]):
        pass


def scattered(count: int) -> Any:
    """So many of the positions, in order."""
    return np.sort(np.random.default_rng(1).choice(ROWS, count, replace=False))


def scans(found: Places, rounds: int) -> None:
    """Scanning many fragments, one after the other and at once."""
    rows = []
    for count, size in ((16, 1000), (6, 40_000)):
        found.at(0.0)
        space = a_space(f"{found.url}/scan-{size}", found.options)
        for part in range(count):
            texts = [f"{part} {number}" for number in range(size)]
            space.add(some_rows(IDENTITY, texts, 384))
        found.at(found.delays[-1])
        times = {}
        for name, how in (("one by one", ONE_BY_ONE), ("as set", readahead(space.location))):
            peaks, costs = [], []
            for _ in range(rounds):
                reader = space.open()
                before = memory("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
                costs.append(timed(reader.location, scan, reader, how))
                peaks.append(memory("VmHWM") - before)
            times[name] = cost = middle(costs)
            rows.append([f"{count} of {size:,}", name, *cost.cells(), f"{max(peaks):.0f}"])
            found.expect(name != "as set" or max(peaks) <= 256, f"scan: {max(peaks):.0f} MB")
        gain = times["one by one"].seconds / times["as set"].seconds
        found.expect(size > 1000 or gain >= 3, f"readahead: only {gain:.1f} times as fast")
    columns = ("fragments", "readahead", "seconds", "requests", "MB", "memory, MB")
    print_table(f"scans, 384 components, {found.at(found.delays[-1])}", columns, rows)


def scan(reader: Reader, how: Readahead = ONE_BY_ONE) -> None:
    """Read all vectors as `Reader` does, with other settings."""
    scanner = reader.dataset.scanner(
        columns=["vector", "checksum"],
        fragments=reader.fragments,
        batch_size=reader.batch_rows,
        scan_in_order=True,
        **how._asdict(),
    )
    for _ in scanner.to_batches():
        pass


def memory(which: str) -> float:
    """Memory of this process in MB, "VmRSS" now or "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024 / 1e6


def commits(found: Places, rounds: int) -> None:
    """Appending some rows."""
    rows = []
    where: list[tuple[str, Any, dict[str, str], float]]
    where = [("disk", found.folder / "commit", {}, 0.0)]
    where += [(found.at(d), f"{found.url}/commit", found.options, d) for d in found.delays]
    for name, place, options, delay in where:
        found.at(delay)
        space = a_space(place, options)
        space.add(some_rows(IDENTITY, [f"{name} first"], 384))
        costs = []
        for number in range(3 * rounds):
            texts = [f"{name} {number} {text}" for text in range(COMMIT_ROWS)]
            made = some_rows(IDENTITY, texts, 384)
            costs.append(timed(space.location, space.add, made))
        cost = middle(costs)
        worst = max(cost.seconds for cost in costs)
        rows.append([name, *cost.cells(), f"{worst:.3f}"])
    found.expect(cost.traffic.requests <= 10, f"commit: {cost.traffic.requests} requests")
    found.expect(cost.seconds <= 0.5, f"commit: {cost.seconds:.2f} s")
    columns = ("place", "seconds", "requests", "MB", "slowest")
    print_table(f"an append of {COMMIT_ROWS:,} rows, 384 components", columns, rows)


PARTS: dict[str, Callable[[Places, int], None]] = {
    "warm": warm,
    "open": opening,
    "fetch": fetch,
    "readahead": scans,
    "commit": commits,
}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", help="a URL in another store, with nothing there")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=20.0, help="ms added to each request")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
