"""What 100 million texts and more cost, by constants that are measured here: `make bench-scaling`.

docs/scaling.md has the formulas and what was found. Real tables and indexes are measured as they
grow, with small made-up vectors where vectors do not count; `--keys 1000000000` also takes the key
index as far as this machine's disk and memory allow. `--parts rows keys` measures some parts only.
Without arguments it takes some minutes on two cores.

Expected, written down before this was run, but after trials of its parts with few rows: those had
shown the bytes of rows and manifests, the requests, and how long 10,000 look-ups take in Lance's
index of a million keys. All else was not known.

- rows: of a row's bytes, at most 55 are neither vector nor text; texts take at most what they take
  in UTF-8.
- keys: an index takes 24 bytes a key, and at its peak at most 36 while it is built. Building takes
  at most 1.5 times as long for a key of 10 million as of 1 million. 100,000 look-ups take at most
  1.5 times as long in a file that is mapped as in memory, at least 20 times as long in Lance's
  index, and at most 3 times as long in all of 16 shards, where memory is at most a quarter.
- large: a mapped file takes at most 4 times as long for a look-up as one of 10 million keys, and
  no memory of a process's own; that it is unchanged is seen in 2 ns a key. Shard by shard, a key
  takes at most 1.5 times as long to be sorted as in an index of 10 million, and the memory is at
  most 90 bytes for each key of a shard.
- claims: whoever coordinates holds 24 bytes for a key, and 4 to 8, which double when they are full;
  at most 36 with what malloc keeps.
- open: to open the index that is kept takes at most a tenth of the time of reading the keys.
- commits: a commit takes at most 10 times as long on 10,000 fragments as on 50; a manifest has at
  most 160 bytes a fragment.
- merging: each row is written again at most so often as fragments must be merged 16 to 1 until they
  are full, rounded up.
- store: a commit is 12 requests at most, and one for each 5 MiB; an opening 3 a fragment; reading
  it all 3 a fragment, and one for each 3.5 MB.

Seconds are by the clock, and in brackets those of the processor, which others on the same cores do
not change: by the ratios of these, parts keys, claims and large are judged. A figure that is missed
is printed and no failure.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _report import machine
from _scaling_formulas import BESIDE_BYTES, Corpus
from _scaling_keys import (
    Figures,
    batches,
    claimed,
    in_lance,
    in_memory,
    keep,
    keep_in_lance,
    keep_large,
    mapped,
    partitioned,
    sharded,
)
from _scaling_process import Seconds, forget, in_a_process
from _scaling_tables import asking, committing, fill, merging, opened, rewrites, row_bytes
from _scaling_tables import keep as keep_of_space

from embcache.store import index_file
from object_store import console, places, print_table, progress

MISSED: list[str] = []


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: Rows of a space whose bytes are counted.
        keys: Keys of an index that is measured in each way, rising.
        looked_up: Keys that are looked up.
        bits: First bits of the keys of a shard, in the comparison.
        most_keys: Keys of the largest index.
        most_bytes: Of the largest file that is mapped.
        most_bits: First bits of the keys of a shard, of the largest index.
        fragments: Of a table, rising.
        commits: How many are simulated.
        merged: Rows of a fragment that is merged.
        stored: Components and rows of fragments in a store.
        texts: What costs are printed of.
    """

    rows: int = 20_000
    keys: tuple[int, ...] = (1_000_000, 10_000_000)
    looked_up: int = 100_000
    bits: int = 4
    most_keys: int = 100_000_000
    most_bytes: int = 7_200_000_000
    most_bits: int = 6
    fragments: tuple[int, ...] = (10, 100, 1000, 10_000)
    commits: int = 20_000
    merged: int = 8000
    stored: tuple[tuple[int, int], ...] = ((384, 1000), (384, 20_000), (1024, 20_000))
    texts: tuple[int, ...] = (100_000_000, 1_000_000_000)


def expect(met: bool, text: str) -> None:
    """Note what is not as expected."""
    if not met:
        MISSED.append(text)


def main() -> int:
    """Measure and print; returns the exit status."""
    arguments = _parse_arguments()
    sizes = Sizes(most_keys=arguments.keys, most_bytes=int(arguments.most_file * 1e9))
    logging.getLogger("embcache").setLevel(logging.ERROR)
    for name in arguments.parts:
        prefix = "embcache-bench-"
        with progress.status(name), tempfile.TemporaryDirectory(prefix=prefix) as folder:
            PARTS[name](Path(folder), sizes)
            sys.stdout.flush()  # a long run into a file is looked at meanwhile
    console.print("as expected" if not MISSED else "MISSED: " + "; ".join(MISSED))
    console.print(", ".join(f"{k} {v}" for k, v in machine().items()), highlight=False)
    return 0


def rows(folder: Path, sizes: Sizes) -> None:
    """Bytes of a row on disk."""
    table = []
    for dim in (384, 1024):
        without, text = row_bytes(folder / f"{dim}-none", dim, sizes.rows, store_text=False)
        whole, _ = row_bytes(folder / f"{dim}-text", dim, sizes.rows, store_text=True)
        beside, stored = without - 4 * dim, whole - without
        cells = [f"{dim}", f"{4 * dim:,}", f"{beside:.1f}", f"{text:.0f}", f"{stored:.0f}"]
        table.append([*cells, f"{without:,.0f}", f"{whole:,.0f}"])
        expect(beside <= 55 and stored <= text, f"rows, {dim}: {beside:.1f} and {stored:.0f} bytes")
        expect(abs(beside - BESIDE_BYTES) < 2, f"rows, {dim}: {beside:.1f}, documented 26 bytes")
    columns = ["components", "vector", "beside", "text, UTF-8", "text, stored"]
    print_table("bytes of a row on disk", (*columns, "row without text", "row with text"), table)


def keys(folder: Path, sizes: Sizes) -> None:
    """Look-ups in four ways."""
    table, before = [], 0.0
    for count in sizes.keys:
        found = _four_ways(folder, count, sizes)
        table += [_row(way, figures) for way, figures in found.items()]
        a, b, c, d = found.values()
        _expect_ways(count, before, (a, b, c, d))
        before = a.build_s.cpu / count
    columns = ["keys", "way", "build, s", "open, s", f"{sizes.looked_up:,} look-ups, s"]
    columns += ["refresh, s", "own memory, MB", "mapped, MB", "peak, MB", "disk, MB"]
    print_table("four ways to look keys up, half of which are there", columns, table)


def _four_ways(folder: Path, count: int, sizes: Sizes) -> dict[str, Figures]:
    looked_up, found = sizes.looked_up, {}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place = Path(made)
        found["(a) in memory"] = in_a_process(in_memory, count, looked_up)
        built = in_a_process(keep, place, count)
        one = in_a_process(mapped, place, count, looked_up)
        found["(b) mapped"] = _with_build(one, built)
        built = in_a_process(keep_in_lance, place, count)
        one = in_a_process(in_lance, place, count, looked_up)
        found["(c) Lance's index"] = _with_build(one, built)
        one = in_a_process(partitioned, place, count, looked_up, sizes.bits)
        found[f"(d) {2**sizes.bits} shards"] = one
    return found


def _with_build(figures: Figures, seconds: Seconds) -> Figures:
    return replace(figures, build_s=seconds)


def _row(way: str, figures: Figures) -> list[str]:
    memory = figures.memory
    sizes = (memory.own, memory.mapped, memory.peak, figures.disk)
    times = (figures.build_s, figures.open_s, figures.find_s, figures.refresh_s)
    return [f"{figures.keys:,}", way, *map(str, times), *(f"{one / 1e6:,.0f}" for one in sizes)]


def _expect_ways(count: int, before: float, ways: Sequence[Figures]) -> None:
    a, b, c, d = ways
    name = f"keys, {count:,}"
    if count < 1_000_000:  # of fewer the arrays are no larger than what is made beside them
        return
    own, peak = a.memory.own / count, a.memory.peak / count
    expect(23 <= own <= 26, f"{name}: {own:.1f} bytes a key")
    expect(peak <= 36 + 5e7 / count, f"{name}: {peak:.1f} bytes a key at the peak")
    expect(not before or a.build_s.cpu / count <= 1.5 * before, f"{name}: building")
    for other, way, least, most in ((b, "b", 0, 1.5), (c, "c", 20, 1e9), (d, "d", 0, 3)):
        ratio = other.find_s.cpu / a.find_s.cpu
        expect(least <= ratio <= most, f"{name}: look-ups in ({way}) {ratio:.1f} times (a)'s")
    expect(d.memory.peak <= a.memory.peak / 4 + 1e8, f"{name}: memory of shards")


def large(folder: Path, sizes: Sizes) -> None:
    """The largest file that is mapped, and an anti-join of the largest number of keys."""
    count, table = min(sizes.most_keys, sizes.most_bytes // 24), []
    small = in_a_process(in_memory, sizes.keys[-1], sizes.looked_up)
    held = min(count, sizes.most_bytes // 36)
    table.append(_row("(a) in memory", in_a_process(in_memory, held, sizes.looked_up)))
    built = in_a_process(keep_large, folder, count)
    forget(folder / index_file.FILE)
    for way in ("(b) from the disk", "(b) mapped, again"):
        one = in_a_process(mapped, folder, count, sizes.looked_up, large=True)
        table.append(_row(way, _with_build(one, built)))
    (folder / index_file.FILE).unlink()
    expect(one.refresh_s.cpu <= 2e-9 * count, f"large: unchanged in {one.refresh_s} s")
    ratio = one.find_s.cpu / small.find_s.cpu
    expect(ratio <= 4, f"large: look-ups in a mapped file {ratio:.1f} times those of (a)")
    expect(one.memory.own <= 1e8, f"large: {one.memory.own / 1e6:.0f} MB of its own")
    columns = ["keys", "way", "build, s", "open, s", f"{sizes.looked_up:,} look-ups, s"]
    columns += ["refresh, s", "own memory, MB", "mapped, MB", "peak, MB", "disk, MB"]
    print_table("the largest indexes in memory and on disk", columns, table)
    shards = in_a_process(sharded, sizes.most_keys, sizes.most_bits)
    each = sizes.most_keys / shards.count
    cells = [f"{shards.keys:,}", f"{shards.count} of {each:,.0f}", f"{shards.build_s}"]
    cells += [f"{shards.find_s}", f"{shards.peak / 1e6:,.0f}"]
    rate = shards.keys / shards.build_s.plus(shards.find_s).cpu
    columns = [
        "keys, and as many wanted",
        "shards",
        "sort, s",
        "search, s",
        "peak, MB",
        "keys/s of cpu",
    ]
    print_table("(d) an anti-join, shard by shard", columns, [[*cells, f"{rate:,.0f}"]])
    ratio = shards.build_s.cpu / shards.keys / (small.build_s.cpu / small.keys)
    expect(ratio <= 1.5, f"large: a key of shards is sorted in {ratio:.1f} times the time")
    expect(
        shards.peak <= 90 * each + 1e8, f"large: {shards.peak / each:.0f} bytes a key of a shard"
    )


def opening(folder: Path, sizes: Sizes) -> None:
    """Openings of a space on disk: from its keys, and from the index that is kept."""
    table = []
    for count in sizes.keys:
        fill(folder / f"{count}", batches(count))
        scanned = in_a_process(opened, folder / f"{count}")
        in_a_process(keep_of_space, folder / f"{count}")
        again = in_a_process(opened, folder / f"{count}")
        cold = scanned if count < index_file.LEAST_KEYS else None
        cold = cold or in_a_process(opened, folder / f"{count}", cold=True)
        kept = count >= index_file.LEAST_KEYS
        found = {"from its keys": scanned}
        found |= {"kept index": again, "kept index, from the disk": cold} if kept else {}
        for how, one in found.items():
            memory = (one.memory.own, one.memory.mapped, one.memory.peak)
            cells = [f"{each / 1e6:,.0f}" for each in memory]
            table.append([f"{count:,}", how, f"{one.seconds:.3f}", *cells])
        if kept and count >= 10_000_000:  # of fewer, most is what any table takes
            ratio = again.seconds / scanned.seconds
            expect(ratio <= 0.1, f"open, {count:,}: the kept index takes {ratio:.2f} of the time")
    columns = ["keys", "how", "seconds", "own memory, MB", "mapped, MB", "peak, MB"]
    print_table("openings of a space on disk", columns, table)


def claims(folder: Path, sizes: Sizes) -> None:
    """What whoever coordinates a cluster run holds for keys that are missing."""
    table = []
    for count in sizes.keys:
        seconds, held, peak = in_a_process(claimed, count, 64)
        cells = [f"{count:,}", f"{seconds}", f"{1e6 * seconds.cpu / count:.2f}"]
        table.append([*cells, f"{held / count:.1f}", f"{peak / count:.1f}"])
        if count >= 10_000_000:
            expect(held <= 36 * count, f"claims, {count:,}: {held / count:.1f} bytes a key")
    columns = [
        "missing keys",
        "claimed in, s",
        "a key, us of cpu",
        "bytes held a key",
        "at the peak",
    ]
    print_table("keys that are claimed, window by window", columns, table)


def commits(folder: Path, sizes: Sizes) -> None:
    """Commits to a table of more and more fragments."""
    found = list(committing(folder, sizes.fragments))
    table = []
    for one in found:
        cells = [f"{one.fragments:,}", f"{one.manifest:,}", f"{one.manifest / one.fragments:.0f}"]
        cells += [f"{one.commit_s:.4f}", f"{one.open_s:.3f}"]
        table.append([*cells, f"{1000 * one.open_s / one.fragments:.2f}"])
    columns = ["fragments", "manifest, bytes", "a fragment", "commit of 8, s", "opening, s"]
    print_table("tables of many fragments", (*columns, "ms a fragment"), table)
    first, last = found[0], found[-1]
    more = (last.manifest - first.manifest) / (last.fragments - first.fragments)
    expect(more <= 160, f"commits: {more:.0f} bytes a fragment")
    ratio = last.commit_s / first.commit_s
    expect(ratio <= 10, f"commits: {ratio:.1f} times as long on {last.fragments:,} fragments")


def compaction(folder: Path, sizes: Sizes) -> None:
    """How often rows are written again, and how fast."""
    table = []
    for dim in (384, 1024):
        for fragment_rows in (500, 2000, 10_000, 50_000):
            corpus = Corpus(100_000_000, dim, 240)
            count = min(sizes.commits, corpus.texts // fragment_rows)
            times, left = rewrites(fragment_rows, int(corpus.row_bytes), count)
            most = corpus.rewrites(fragment_rows)
            row = [f"{dim}", f"{fragment_rows:,}", f"{corpus.largest_rows:,}", f"{count:,}"]
            table.append([*row, f"{times:.2f}", f"{most:.0f}", f"{left:,}"])
            expect(times <= most, f"merging: {fragment_rows:,} rows {times:.2f} times")
    columns = ["components", "rows committed at once", "rows of a full fragment", "commits"]
    columns += ["written again, times", "formula", "fragments left"]
    print_table("what compaction decides, fragments with texts of 240 bytes", columns, table)
    size, cost = merging(folder, {}, 384, sizes.merged)
    console.print(f"\n16 fragments merged: {size / 1e6:,.0f} MB in {cost.seconds:.2f} s")


def store(folder: Path, sizes: Sizes) -> None:
    """What an object store is asked for."""
    table = []
    with places(argparse.Namespace(cache=None, delay=0.0)) as found:
        for dim, count in sizes.stored:
            one = asking(found, dim, count, 4)
            costs = (one.append, one.opening, one.reading)
            sent = [cost.traffic for cost in costs]
            cells = [f"{each.requests} and {each.bytes / 1e6:.1f}" for each in sent]
            table.append(
                [f"{dim}", f"{one.fragments} of {count:,}", f"{one.size / 1e6:.1f}", *cells]
            )
            expect(sent[0].requests <= 12 + one.size / 2**20 / 5, f"store: {cells[0]}")
            expect(sent[1].requests <= 11 + 3 * one.fragments, f"store: {cells[1]}")
            most = 3 * one.fragments + sent[2].bytes / 3.5e6
            expect(sent[2].requests <= most, f"store: {cells[2]}")
        size, cost = merging(f"{found.url}/merging", found.options, 384, sizes.merged // 2)
    columns = ["components", "fragments", "MB of one", "commit of one", "opening", "reading all"]
    print_table("requests and MB", columns, table)
    asked = f"{cost.traffic.requests} requests, {cost.traffic.bytes / 1e6:,.0f} MB to and fro"
    console.print(f"\n16 fragments merged: {size / 1e6:,.0f} MB, {asked}")


def costs(folder: Path, sizes: Sizes) -> None:
    """What the formulas say."""
    table = []
    for texts in sizes.texts:
        for dim in (384, 1024):
            corpus = Corpus(texts, dim, 240)
            bare = Corpus(texts, dim)
            requests, read = corpus.opening()
            row = [f"{texts:,}", f"{dim}", f"{bare.stored_bytes / 1e12:.2f}"]
            row += [f"{corpus.stored_bytes / 1e12:.2f}", f"{corpus.index_bytes() / 1e9:.1f}"]
            row += [f"{corpus.fragments:,}", f"{corpus.manifest_bytes / 1e6:.2f}"]
            table.append([*row, f"{requests:,}", f"{read / 1e9:.1f}", f"{corpus.reading():,.0f}"])
    columns = ["texts", "components", "TB without texts", "TB with texts", "index, GB"]
    columns += [
        "fragments",
        "manifest, MB",
        "requests to open",
        "GB to open",
        "requests to read all",
    ]
    print_table("costs by the formulas, texts of 240 bytes as stored", columns, table)


PARTS: dict[str, Callable[[Path, Sizes], None]] = {
    "rows": rows,
    "keys": keys,
    "open": opening,
    "claims": claims,
    "commits": commits,
    "merging": compaction,
    "store": store,
    "large": large,
    "costs": costs,
}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keys", type=int, default=Sizes.most_keys, help="of the largest index (part large)"
    )
    parser.add_argument("--most-file", type=float, default=7.2, help="GB of it that are mapped")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
