"""Four ways to ask which of many keys are there, and how far each can be taken.

Keys are random 128-bit numbers, as xxh3 makes them of texts, and made again from seeds wherever
they are needed: none is kept for comparison. Half of the keys that are looked up are there, and
what is found is checked each time. What takes memory is measured in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median_low

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from _scaling_process import NOTHING, Memory, Seconds

from embcache.cluster.claims import Claims
from embcache.identity.keys import KEY_BYTES, Keys, to_bytes
from embcache.store import index_file
from embcache.store.index import KeyIndex, KeyParts, Positions, UnsortedKeys
from embcache.store.verify import batch_keys

Found = npt.NDArray[np.bool_]
"""`(n,) bool`: which of the keys that were looked up are there."""

_BATCH = 2**20
_IN_A_QUESTION = 10_000  # keys: each takes 2.5 times as long with 1,000, with 100,000 half of it
_CLAIMED = 20_000  # keys at once
_ROUNDS = 3
_SORTED_BITS = 6
_SCHEMA = pa.schema([pa.field("key", pa.binary(KEY_BYTES), nullable=False)])


@dataclass(frozen=True)
class Figures:
    """What one way costs.

    Attributes:
        keys: How many keys there are.
        build_s: Seconds until the keys can be searched, beginning with keys in no order.
        open_s: Seconds until another process can search them; 0 where it has to build.
        find_s: Seconds of the look-ups.
        memory: What building takes, or opening and searching where it is another process that does.
        disk: Bytes on disk.
        refresh_s: Seconds in which keys of unchanged fragments are told from others, which whoever
            has the space open does for each commit that it sees; 0 where it was not measured.
    """

    keys: int
    build_s: Seconds
    open_s: Seconds
    find_s: Seconds
    memory: Memory
    disk: int = 0
    refresh_s: Seconds = NOTHING


@dataclass(frozen=True)
class Shards:
    """What an anti-join by shards costs: of as many keys wanted as there are, one after the other.

    Attributes:
        count: How many shards there are.
        keys: How many keys there are in all of them.
        build_s: Seconds in which all shards' keys are sorted.
        find_s: Seconds in which all keys are looked up.
        peak: The most memory that came with a shard, in bytes.
    """

    count: int
    keys: int
    build_s: Seconds
    find_s: Seconds
    peak: int


def batches(count: int, shard: int = 0, bits: int = 0, seed: int = 0) -> Iterator[Keys]:
    """Random keys in no order, the same ones each time.

    Args:
        count: How many there are in all.
        shard: What their first bits are.
        bits: How many bits these are.
        seed: Of other keys: another one.
    """
    for number, start in enumerate(range(0, count, _BATCH)):
        rng = np.random.default_rng((seed, bits, shard, number))
        keys = rng.integers(0, 2**64, (min(_BATCH, count - start), 2), np.uint64)
        if bits:
            keys[:, 0] >>= np.uint64(bits)
            keys[:, 0] |= np.uint64(shard << (64 - bits))
        yield keys


def sorted_shards(count: int) -> Iterator[tuple[int, int]]:
    """Shards of the keys that are sorted on disk: their numbers, and how many keys each has."""
    each = 2**_SORTED_BITS
    for shard in range(each):
        yield shard, (shard + 1) * count // each - shard * count // each


def sample(stored: Iterator[Keys], count: int, looked_up: int) -> tuple[Keys, Found]:
    """Keys to be looked up, half of which are there.

    Args:
        stored: The keys that are there.
        count: How many these are.
        looked_up: How many are to be looked up; at most `2 * count`.

    Returns:
        `(looked_up, 2) uint64`, and which of them are there.
    """
    half = looked_up // 2
    there = np.concatenate([keys[: -(-half * len(keys) // count)] for keys in stored])[:half]
    fresh = np.concatenate(list(batches(looked_up - len(there), seed=1)))
    order = np.random.default_rng(2).permutation(looked_up)
    return np.concatenate((there, fresh))[order], (order < len(there))


def search(find: Callable[[Keys], Positions], wanted: Keys, there: Found) -> Seconds:
    """Seconds in which keys are looked up, the median of a few times.

    Args:
        find: Says where each key is, -1 for one that is not there.
        wanted: The keys.
        there: Which of them are there.

    Raises:
        RuntimeError: It says something else.
    """
    seconds = []
    for _ in range(_ROUNDS):
        began = Seconds.now()
        found = find(wanted)
        seconds.append(Seconds.since(began))
        if not ((found >= 0) == there).all():
            raise RuntimeError("keys that are there were not found, or others were")
    return median_low(seconds)


def built(keys: Iterator[Keys], count: int) -> KeyIndex:
    """An index of keys in no order, built as opening a space does."""
    unsorted, start = UnsortedKeys(count), 0
    for batch in keys:
        unsorted.add(batch, np.arange(start, start + len(batch), dtype=np.uint64))
        start += len(batch)
    return unsorted.index()


def refreshed(index: KeyParts) -> Seconds:
    """Seconds in which an index is found to be unchanged, the median of a few times."""
    seconds = []
    for _ in range(_ROUNDS):
        began = Seconds.now()
        index.first(len(index))
        seconds.append(Seconds.since(began))
    return median_low(seconds)


def in_memory(count: int, looked_up: int) -> Figures:
    """(a) Sorted arrays in this process's memory."""
    wanted, there = sample(batches(count), count, looked_up)
    before, began = Memory.begin(), Seconds.now()
    index = built(batches(count), count)
    build_s = Seconds.since(began)
    memory = Memory.now().since(before)
    find_s = search(index.find, wanted, there)
    return Figures(count, build_s, Seconds(), find_s, memory, 0, refreshed(KeyParts((index,))))


def keep(folder: Path, count: int) -> Seconds:
    """Build an index and keep it on disk; returns the seconds of both."""
    began = Seconds.now()
    index_file.save(folder, [], KeyParts((built(batches(count), count),)))
    return Seconds.since(began)


def keep_large(folder: Path, count: int) -> Seconds:
    """Keep an index on disk that memory does not hold, sorted shard by shard; returns the seconds.

    The arrays are files while it is made, which takes its size on disk once more.
    """
    began, start = Seconds.now(), 0
    names = ("heads", "tails", "positions")
    arrays = [np.memmap(folder / name, np.uint64, "w+", shape=(count,)) for name in names]
    for shard, size in sorted_shards(count):
        part = built(batches(size, shard, _SORTED_BITS), size)
        rows = slice(start, start + size)
        for array, words in zip(arrays, (part.heads, part.tails, part.positions), strict=True):
            array[rows] = words
        arrays[2][rows] += np.uint64(start)
        start += size
    heads, tails, positions = arrays
    index_file.save(folder, [], KeyParts((KeyIndex(heads, tails, positions.view(np.int64)),)))
    for name in names:
        (folder / name).unlink()
    return Seconds.since(began)


def mapped(folder: Path, count: int, looked_up: int, *, large: bool = False) -> Figures:
    """(b) The same arrays, mapped from a file that all processes of a host share.

    Args:
        folder: Has the file.
        count: How many keys are in it.
        looked_up: How many are looked up.
        large: Whether it was made by `keep_large`.
    """
    sizes = sorted_shards(count)
    shards = (batches(size, shard, _SORTED_BITS) for shard, size in sizes)
    stored = chain.from_iterable(shards) if large else batches(count)
    wanted, there = sample(stored, count, looked_up)
    before, began = Memory.begin(), Seconds.now()
    loaded = index_file.load(folder, count)
    if loaded is None:
        raise RuntimeError("the index that was kept cannot be used")
    open_s = Seconds.since(began)
    find_s = search(loaded[1].find, wanted, there)
    memory, size = Memory.now().since(before), (folder / index_file.FILE).stat().st_size
    return Figures(count, Seconds(), open_s, find_s, memory, size, refreshed(loaded[1]))


def keep_in_lance(folder: Path, count: int) -> Seconds:
    """Make a table of keys with Lance's scalar index; returns the seconds of the index."""
    records = (
        pa.RecordBatch.from_arrays([_as_arrow(keys)], schema=_SCHEMA) for keys in batches(count)
    )
    reader = pa.RecordBatchReader.from_batches(_SCHEMA, records)
    dataset = lance.write_dataset(reader, folder / "keys.lance")
    began = Seconds.now()
    dataset.create_scalar_index("key", "BTREE")
    return Seconds.since(began)


def in_lance(folder: Path, count: int, looked_up: int) -> Figures:
    """(c) Lance's own index, asked for many keys at once."""
    wanted, there = sample(batches(count), count, looked_up)
    before, began = Memory.begin(), Seconds.now()
    dataset = lance.dataset(folder / "keys.lance")
    open_s = Seconds.since(began)

    def find(keys: Keys) -> Positions:
        raw, found = to_bytes(keys), []
        literals = [f"X'{raw[at : at + KEY_BYTES].hex()}'" for at in range(0, len(raw), KEY_BYTES)]
        for at in range(0, len(literals), _IN_A_QUESTION):
            asked = ", ".join(literals[at : at + _IN_A_QUESTION])
            found.append(batch_keys(dataset.to_table(columns=["key"], filter=f"key IN ({asked})")))
        return built(iter(found), sum(map(len, found))).find(keys)

    find_s = search(find, wanted, there)
    files = (folder / "keys.lance" / "_indices").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Figures(count, Seconds(), open_s, find_s, Memory.now().since(before), size)


def partitioned(folder: Path, count: int, looked_up: int, bits: int) -> Figures:
    """(d) Keys distributed to files by their first bits, and each file's searched by itself.

    Args:
        folder: Where the files are made.
        count: How many keys there are.
        looked_up: How many are looked up.
        bits: How many first bits; there are `2 ** bits` files.
    """
    wanted, there = sample(batches(count), count, looked_up)
    before, began = Memory.begin(), Seconds.now()
    for keys in batches(count):
        for shard, part in enumerate(by_shard(keys, bits)):
            with (folder / f"{shard}.keys").open("ab") as file:
                part.tofile(file)
    build_s, find_s = Seconds.since(began), Seconds()
    for shard in range(2**bits):
        began = Seconds.now()
        keys = np.fromfile(folder / f"{shard}.keys", np.uint64).reshape(-1, 2)
        index = built(iter([keys]), len(keys))
        build_s = build_s.plus(Seconds.since(began))
        mine = wanted[:, 0] >> np.uint64(64 - bits) == shard
        find_s = find_s.plus(search(index.find, wanted[mine], there[mine]))
    return Figures(count, build_s, Seconds(), find_s, Memory.now().since(before), KEY_BYTES * count)


def by_shard(keys: Keys, bits: int) -> list[Keys]:
    """Keys by their first bits, in `2 ** bits` parts."""
    shard = (keys[:, 0] >> np.uint64(64 - bits)).astype(np.uint16)
    order = np.argsort(shard, kind="stable")
    starts = np.searchsorted(shard[order], np.arange(1, 2**bits))
    return np.split(keys[order], starts)


def claimed(count: int, replicas: int) -> tuple[Seconds, int, int]:
    """Claim keys as the replicas of a cluster run do, and say that they are done.

    Args:
        count: How many keys are missing.
        replicas: How many blocks are worked on in turns.

    Returns:
        Seconds in which all are claimed; bytes that are held for them; bytes at the peak.
    """
    claims, seconds, before = Claims(), Seconds(), Memory.begin()
    for block, keys in enumerate(window for batch in batches(count) for window in windows(batch)):
        began = Seconds.now()
        mine = claims.claim(block, keys)
        seconds = seconds.plus(Seconds.since(began))
        if not mine.all() or claims.claim(block + replicas, keys).any():
            raise RuntimeError("a key was given to two blocks, or to none")
        claims.done(keys)
    memory = Memory.now().since(before)
    return seconds, memory.own, memory.peak


def windows(keys: Keys) -> list[Keys]:
    """Keys that are claimed at once."""
    return [keys[at : at + _CLAIMED] for at in range(0, len(keys), _CLAIMED)]


def sharded(count: int, bits: int) -> Shards:
    """(d) An anti-join of as many wanted keys as there are cached, shard by shard.

    Each shard's keys are made when it is its turn, and dropped: what distributes them is left out,
    see `partitioned`. Half of the wanted keys are there.

    Args:
        count: How many keys are cached in all.
        bits: How many first bits make a shard.
    """
    build_s = find_s = Seconds()
    peak = 0
    for shard in range(2**bits):
        size = (shard + 1) * count // 2**bits - shard * count // 2**bits
        built_s, found_s, most = in_turn(size, shard, bits)
        build_s, find_s, peak = build_s.plus(built_s), find_s.plus(found_s), max(peak, most)
    return Shards(2**bits, count, build_s, find_s, peak)


def in_turn(size: int, shard: int, bits: int) -> tuple[Seconds, Seconds, int]:
    """Make, sort, search and drop a shard: seconds of sorting and searching, bytes at the peak."""
    before = Memory.begin()
    stored = np.concatenate(list(batches(size, shard, bits)))
    began = Seconds.now()
    index = built(iter([stored]), size)
    build_s, half = Seconds.since(began), size // 2
    fresh = np.concatenate(list(batches(size - half, shard, bits, seed=1)))
    wanted = np.concatenate((stored[:half], fresh))
    del stored, fresh
    began = Seconds.now()
    found = index.find(wanted) >= 0
    find_s = Seconds.since(began)
    if not found[:half].all() or found[half:].any():
        raise RuntimeError("keys that are there were not found, or others were")
    return build_s, find_s, Memory.now().since(before).peak


def _as_arrow(keys: Keys) -> pa.Array:
    raw = pa.py_buffer(to_bytes(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, raw])
