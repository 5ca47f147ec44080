"""The points of a map: a random sample of a space's rows, each verified."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import ConfigError
from embcache.identity.keys import Keys
from embcache.store.index import run_starts, sorting_order
from embcache.store.rows import batch_keys, check_filters, filter_rows
from embcache.store.schema import VECTORS, SpaceMetadata, read_metadata, schema_layout
from embcache.store.space import Space
from embcache.store.verify import key_fits
from embcache.tools.survey import open_dataset

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
    """Rows of a space, drawn at random, by ascending key: in no order that means anything.

    Attributes:
        path: The space's folder.
        metadata: What the space says about itself.
        vectors: `(n, dim) float32`, finite, verified.
        columns: n rows of `text`, `prompt`, `prompt_type`, `task` (strings) and `n_tokens`
            (int32), as far as the space has them.
        matched: Rows that they were drawn from; a key that is there twice counts once.
        damaged: Rows that were drawn and left out: they fail their checksum, or their text is not
            that of their key.
    """

    path: Path
    metadata: SpaceMetadata
    vectors: npt.NDArray[np.float32]
    columns: pa.Table
    matched: int
    damaged: int

    def __len__(self) -> int:
        return len(self.vectors)


def sample_points(
    path: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    contains: str | None = None,
    limit: int = 10_000,
    seed: int = 0,
) -> Points:
    """Draw rows of a space at random; of the others no vector is kept.

    Args:
        path: Folder of the space, `<cache>/<name>.lance`.
        prompt: Only rows with this prompt.
        contains: Only rows with this in their text.
        limit: How many rows at most.
        seed: The same one draws the same rows, in whatever order they were written.

    Returns:
        The points. Memory: the points, and about 100 bytes a row of the space.

    Raises:
        ConfigError: The space holds scores, has not the column that a filter needs, or fewer than
            three rows that fit; `limit` is below three; there is no space.
        CacheError: The space cannot be read.
    """
    if limit < LEAST_POINTS:
        raise ConfigError(f"limit={limit}: a map needs {LEAST_POINTS} points. Give a larger limit.")
    space = _open(Path(path).expanduser(), prompt, contains)
    candidates = _distinct(_matching(space, prompt, contains))
    draw = np.random.default_rng(seed).choice
    count = min(limit, len(candidates))
    keys = candidates[np.sort(draw(len(candidates), count, replace=False))]
    positions = space.find(keys)
    vectors = np.empty((count, space.dim or 0), np.float32)
    bad = space.read(positions, keys, vectors, np.arange(count))
    types = {name: kind for name, kind in _TYPES.items() if name in space.columns}
    rows = space.rows_at(positions, list(types))
    columns = pa.Table.from_pylist(rows, pa.schema(list(types.items())))
    bad |= key_fits(columns, keys, VECTORS, space.metadata.identity) == 0
    if bad.any():
        logger.warning(
            "%d of %d rows drawn from %s are damaged and left out.", bad.sum(), count, space.path
        )
    _check_count(len(candidates), count, int(bad.sum()), space.path)
    return Points(
        path=space.path,
        metadata=space.metadata,
        vectors=vectors[~bad],
        columns=columns.filter(pa.array(~bad)),
        matched=len(candidates),
        damaged=int(bad.sum()),
    )


def _open(path: Path, prompt: str | None, contains: str | None) -> Space:
    schema = open_dataset(path).schema
    metadata = read_metadata(schema, str(path))
    if schema_layout(schema) is not VECTORS:
        raise ConfigError(
            f"{path} holds scores, one number a pair: there is nothing to draw. Give a space of "
            "vectors."
        )
    check_filters(schema, prompt, contains)
    space = Space(path, metadata)
    space.refresh()
    return space


def _matching(space: Space, prompt: str | None, contains: str | None) -> Keys:
    """Keys of the rows that fit, `(n, 2) uint64`."""
    needed = {"prompt": prompt, "text": contains}
    columns = [name for name, wanted in needed.items() if wanted is not None]
    if not columns:
        return space.keys()
    batches = (filter_rows(b, prompt, contains) for b in space.scan(["key", *columns]))
    keys: list[Keys] = [np.empty((0, 2), np.uint64), *map(batch_keys, batches)]
    return np.concatenate(keys)


def _distinct(keys: Keys) -> Keys:
    """Each key once, sorted: the same for the same rows, however they lie in the table."""
    ordered = keys[sorting_order(keys, np.arange(len(keys)))]
    distinct: Keys = ordered[run_starts(ordered)]
    return distinct


def _check_count(matched: int, drawn: int, damaged: int, path: Path) -> None:
    if drawn - damaged >= LEAST_POINTS:
        return
    if damaged:
        fix = "The others are damaged: `check_space` with fix=True removes them."
    else:
        fix = "Widen the filters (prompt, contains), or encode more texts."
    raise ConfigError(
        f"{path}: {drawn - damaged} of {matched} rows that fit can be drawn, and a map needs "
        f"{LEAST_POINTS} points. {fix}"
    )
