"""The points of a map: a random sample of a space's rows, each verified."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import ConfigError
from embcache.identity.keys import Keys
from embcache.store import VECTORS, Location, RowFilter, Space, SpaceSnapshot
from embcache.store.index import run_starts, sorting_order
from embcache.store.schema import SpaceMetadata
from embcache.store.verify import batch_keys, key_fits

logger = logging.getLogger(__name__)

LEAST_POINTS = 3  # two points lie on a line, whatever they are

_TYPES = {
    "text": pa.string(),
    "prompt": pa.string(),
    "prompt_type": pa.string(),
    "task": pa.string(),
    "n_tokens": pa.int32(),
}


@dataclass(frozen=True)
class Points:
    """Rows of a space, drawn at random; in the order of their keys, which means nothing.

    Attributes:
        location: The space's folder.
        metadata: What the space says about itself.
        vectors: `(n, dim) float32`, row i = point i, finite and verified.
        columns: Row i belongs to point i; `text`, `prompt`, `prompt_type`, `task` (strings) and
            `n_tokens` (int32), as far as the space has them.
        matched: How many rows the points were drawn from; rows with the same key count once.
        damaged: How many rows were drawn and left out, because they fail their checksum or their
            text is not that of their key.
    """

    location: Location
    metadata: SpaceMetadata
    vectors: npt.NDArray[np.float32]
    columns: pa.Table
    matched: int
    damaged: int

    def __len__(self) -> int:
        return len(self.vectors)


def sample_points(
    space: Space,
    *,
    prompt: str | None = None,
    contains: str | None = None,
    limit: int = 10_000,
    seed: int = 0,
) -> Points:
    """Draw rows of a space at random.

    Of the rows that are not drawn only the keys are kept in memory.

    Args:
        space: A space of vectors.
        prompt: Draw only rows with exactly this prompt; None for any.
        contains: Draw only rows whose text contains this; None for any.
        limit: How many rows to draw at most, 3 or more.
        seed: The same seed draws the same rows, in whatever order they were written.

    Raises:
        ConfigError: `limit` is below 3; the space holds scores, does not exist, lacks the column
            that a filter needs, or has fewer than 3 undamaged rows that fit the filters.
        CacheError: The space cannot be read.
    """
    if limit < LEAST_POINTS:
        raise ConfigError(f"limit={limit}: a map needs {LEAST_POINTS} points. Give a larger limit.")
    snapshot = _open(space)
    candidates = _distinct(_matching(snapshot, RowFilter(prompt, contains)))
    draw = np.random.default_rng(seed).choice
    count = min(limit, len(candidates))
    keys = candidates[np.sort(draw(len(candidates), count, replace=False))]
    positions = snapshot.find(keys)
    vectors, bad = snapshot.read_all(positions, keys)
    types = {name: kind for name, kind in _TYPES.items() if name in snapshot.columns}
    rows = snapshot.take(positions, list(types)).to_pylist()
    columns = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    bad |= key_fits(columns, keys, VECTORS, space.identity) == 0
    if bad.any():
        logger.warning(
            "%d of %d rows drawn from %s are damaged and left out.",
            bad.sum(),
            count,
            space.location,
        )
    _check_count(len(candidates), count, int(bad.sum()), space.location)
    return Points(
        location=space.location,
        metadata=space.metadata,
        vectors=vectors[~bad],
        columns=columns.filter(pa.array(~bad)),
        matched=len(candidates),
        damaged=int(bad.sum()),
    )


def _open(space: Space) -> SpaceSnapshot:
    if space.layout is not VECTORS:
        raise ConfigError(
            f"{space.location} holds scores, one number a pair: there is nothing to draw. Give a "
            "space of vectors."
        )
    return space.refresh()


def _matching(snapshot: SpaceSnapshot, chosen: RowFilter) -> Keys:
    """Keys of the rows that fit, `(n, 2) uint64`."""
    if not chosen.active or snapshot.reader is None:
        return snapshot.keys()
    batches = map(chosen.apply, snapshot.scan(["key", *chosen.columns(snapshot.reader.schema)]))
    keys: list[Keys] = [np.empty((0, 2), np.uint64), *map(batch_keys, batches)]
    return np.concatenate(keys)


def _distinct(keys: Keys) -> Keys:
    """Each key once, sorted: the same for the same rows, however they lie in the table."""
    ordered = keys[sorting_order(keys, np.arange(len(keys)))]
    distinct: Keys = ordered[run_starts(ordered)]
    return distinct


def _check_count(matched: int, drawn: int, damaged: int, where: Location) -> None:
    if drawn - damaged >= LEAST_POINTS:
        return
    if damaged:
        fix = "The others are damaged: `check_space` with fix=True removes them."
    else:
        fix = "Widen the filters (prompt, contains), or encode more texts."
    raise ConfigError(
        f"{where}: {drawn - damaged} of {matched} rows that fit can be drawn, and a map needs "
        f"{LEAST_POINTS} points. {fix}"
    )
