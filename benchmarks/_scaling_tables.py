"""What real spaces cost as they grow: bytes a row, openings, commits, compaction, requests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import lance
import numpy as np
from _inputs import make_texts
from _scaling_keys import batches
from _scaling_process import Memory, forget
from lance.fragment import write_fragments

from embcache.identity.keys import Keys
from embcache.store import VECTORS, Database, Location, Rows, Space, index_file
from embcache.store.compaction import (
    LARGEST_BYTES,
    LARGEST_ROWS,
    Fragment,
    fragments_to_merge,
    merge_fragments,
)
from embcache.store.manifests import versions
from embcache.store.schema import space_schema
from object_store import IDENTITY, Cost, Places, a_space, some_rows, timed

_DIM = 8  # where vectors do not matter
_TOKENS = (40, 80)  # of a passage
_ROUNDS = 5
_COMMITTED = 8  # fragments in a commit


@dataclass(frozen=True)
class Opening:
    """What one opening of a space costs.

    Attributes:
        seconds: How long it took.
        memory: What came with it.
    """

    seconds: float
    memory: Memory


@dataclass(frozen=True)
class Commits:
    """What a table of many fragments costs.

    Attributes:
        fragments: How many it has.
        manifest: Bytes of its manifest.
        commit_s: Seconds of a commit of a few fragments more.
        open_s: Seconds until it is opened and its keys are read.
    """

    fragments: int
    manifest: int
    commit_s: float
    open_s: float


@dataclass(frozen=True)
class Requests:
    """What an object store is asked for.

    Attributes:
        rows: Rows of a fragment.
        size: Bytes of a fragment.
        append: What it costs to commit one.
        opening: What it costs to open the space of them, `fragments` in number.
        reading: What it costs to read all rows then.
        fragments: How many fragments were committed.
    """

    rows: int
    size: int
    append: Cost
    opening: Cost
    reading: Cost
    fragments: int


def row_bytes(folder: Path, dim: int, rows: int, *, store_text: bool) -> tuple[float, float]:
    """Bytes on disk of a row, and of its text in UTF-8.

    Args:
        folder: Where a cache is made.
        dim: Components of the vectors.
        rows: How many rows are committed.
        store_text: Whether texts are.
    """
    texts = make_texts(rows, _TOKENS)
    made = some_rows(IDENTITY, texts, dim)
    columns = {**made.columns, "prompt_type": "document", "task": "Task"}
    lengths = np.array([text.count(" ") + 3 for text in texts], np.int32)
    space = a_space(folder, {}, store_text=store_text)
    space.add(Rows(made.keys, made.values, columns, lengths))
    size = sum(Fragment.of(fragment).size for fragment in space.table().to_lance().get_fragments())
    return size / rows, sum(len(text.encode()) for text in texts) / rows


def fill(place: str | Path, keys: Iterator[Keys]) -> Space:
    """A space of keys, one fragment a batch, with small vectors and without texts."""
    space = a_space(place, {}, store_text=False)
    schema = space_schema(VECTORS, _DIM, space.metadata, store_text=False)
    for batch in keys:
        vectors = np.ones((len(batch), _DIM), np.float32)
        space.append(Rows(batch, vectors).to_arrow(schema, store_text=False), _DIM)
    return space


def keep(folder: Path) -> float:
    """Have a space keep its index on disk; returns the seconds of it."""
    space = a_space(folder, {}, store_text=False)
    space.refresh()
    began = time.perf_counter()
    space.keep_index()
    return time.perf_counter() - began


def opened(folder: Path, *, cold: bool = False) -> Opening:
    """Open a space to read it, with the index that is kept on disk where there is one.

    Args:
        folder: The cache.
        cold: Whether what is kept has to come from the disk.
    """
    space = Database(folder, writable=False).space(IDENTITY, "none", "none")
    if cold:
        forget(Path(str(space.location)) / index_file.FILE)
    before, began = Memory.begin(), time.perf_counter()
    snapshot = space.refresh()
    seconds = time.perf_counter() - began
    if len(snapshot.index) != len(snapshot):
        raise RuntimeError("the index has not the keys of all rows")
    return Opening(seconds, Memory.now().since(before))


def committing(folder: Path, sizes: Sequence[int]) -> Iterator[Commits]:
    """A table that gets more and more fragments, as a cluster's committer adds them.

    Args:
        folder: Where a cache is made.
        sizes: How many fragments it has, rising.
    """
    space = fill(folder, batches(1))
    uri, there = str(space.location), 1
    for size in sizes:
        _commit(uri, _fragments(space, size - there, there))
        seconds = []
        for number in range(_ROUNDS):
            more = _fragments(space, _COMMITTED, size + number * _COMMITTED)
            began = time.perf_counter()
            _commit(uri, more)
            seconds.append(time.perf_counter() - began)
        there = size + _ROUNDS * _COMMITTED
        manifests = versions(Path(uri))
        manifest = manifests[max(manifests)].stat().st_size
        yield Commits(there, manifest, median(seconds), opened(folder).seconds)


def _fragments(space: Space, count: int, seed: int) -> list[lance.FragmentMetadata]:
    """Fragments of one row, written and not committed."""
    schema = space_schema(VECTORS, _DIM, space.metadata, store_text=False)
    (keys,) = batches(count, seed=seed + 1)
    rows = Rows(keys, np.ones((count, _DIM), np.float32)).to_arrow(schema, store_text=False)
    return write_fragments(rows, str(space.location), max_rows_per_file=1, max_rows_per_group=1)


def _commit(uri: str, fragments: list[lance.FragmentMetadata]) -> None:
    dataset = lance.dataset(uri)
    operation = lance.LanceOperation.Append(fragments)
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


def rewrites(fragment_rows: int, row_size: int, commits: int) -> tuple[float, int]:
    """How often a row is written again, by what compaction decides after each commit.

    Args:
        fragment_rows: Rows of a fragment that is committed.
        row_size: Bytes of a row.
        commits: How many such fragments are committed.

    Returns:
        Rows that were written again for each row, and how many fragments there are in the end.
    """
    there: list[Fragment] = []
    again = number = 0
    for _ in range(commits):
        there.append(Fragment(number, fragment_rows, 0, fragment_rows * row_size))
        number += 1
        chosen = fragments_to_merge(there)
        if chosen is None:
            continue
        merged = _merged([f.rows for f in there if f.number in chosen], row_size)
        again += sum(merged)
        there = [fragment for fragment in there if fragment.number not in chosen]
        there += [Fragment(number + n, rows, 0, rows * row_size) for n, rows in enumerate(merged)]
        number += len(merged)
    return again / (fragment_rows * commits), len(there)


def _merged(rows: list[int], row_size: int) -> list[int]:
    """Rows of the fragments that Lance makes of some: each is full, and the last takes the rest."""
    full = max(1, min(LARGEST_ROWS, LARGEST_BYTES // row_size))
    made = [0]
    for number, more in enumerate(rows):
        if made[-1] >= full and sum(rows[number:]) >= full:
            made.append(0)
        made[-1] += more
    return made


def rewritten(folder: Path, fragment_rows: int, commits: int) -> tuple[float, int]:
    """As `rewrites`, of a real space that is compacted after each commit."""
    space = a_space(folder, {}, store_text=False)
    again, before = 0, {-1}
    for seed in range(commits):
        fill(folder, batches(fragment_rows, seed=seed + 1))
        before = {fragment.number for fragment in _known(space)}
        merge_fragments(space.location, lambda: True)
        again += sum(one.rows for one in _known(space) if one.number not in before)
    return again / (fragment_rows * commits), len(_known(space))


def _known(space: Space) -> list[Fragment]:
    return [Fragment.of(fragment) for fragment in space.open().fragments]


def merging(
    place: str | Path, options: dict[str, str], dim: int, rows: int, count: int = 16
) -> tuple[int, Cost]:
    """Bytes of fragments that become one, and what that costs.

    Args:
        place: Where a cache is made.
        options: What a store is opened with.
        dim: Components of the vectors.
        rows: Rows of a fragment.
        count: How many fragments there are.
    """
    space = a_space(place, options)
    for number in range(count):
        texts = [f"{number} {text}" for text in make_texts(rows, _TOKENS, seed=number)]
        space.add(some_rows(IDENTITY, texts, dim, seed=number))
    size = sum(fragment.size for fragment in _known(space))
    cost = timed(space.location, merge_fragments, space.location, lambda: True)
    if len(_known(space)) != 1:
        raise RuntimeError(f"of {count} fragments {len(_known(space))} are left")
    return size, cost


def asking(places: Places, dim: int, rows: int, fragments: int) -> Requests:
    """What a store is asked for when a space is filled, opened and read in another process.

    Args:
        places: Has the store.
        dim: Components of the vectors.
        rows: Rows of a fragment.
        fragments: How many are committed.
    """
    url = f"{places.url}/asking-{dim}-{rows}"
    space = a_space(url, places.options)
    space.add(some_rows(IDENTITY, ["the first"], dim))
    for number in range(fragments):
        texts = [f"{number} {text}" for text in make_texts(rows, _TOKENS, seed=number)]
        append = timed(space.location, space.add, some_rows(IDENTITY, texts, dim, seed=number))
    size = max(fragment.size for fragment in _known(space))
    location = Location.of(url, places.options)
    reading = Database(location, writable=False).space(IDENTITY, "none", "none")
    opening = timed(location, reading.refresh)
    snapshot = reading.refresh()
    keys = snapshot.keys()
    whole = timed(location, snapshot.read_all, snapshot.find(keys), keys)
    return Requests(rows, size, append, opening, whole, fragments + 1)
