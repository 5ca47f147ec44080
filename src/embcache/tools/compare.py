"""How far two spaces agree on the texts that both hold."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError, ConfigError
from embcache.identity.keys import Keys, pair_keys
from embcache.pipeline.cosine import cosines
from embcache.store import VECTORS, Space, SpaceSnapshot
from embcache.store.index import KeyIndex, run_starts

logger = logging.getLogger(__name__)

Doubles = npt.NDArray[np.float64]

_BATCH_ROWS = 4096
_UNKNOWN_PROMPT = "\0unknown"  # a prompt that embcache could not know; not the same as none


@dataclass(frozen=True)
class TextCosine:
    """One text in two spaces.

    Attributes:
        text: The text.
        prompt: What was put in front of it; None where that is not known.
        cosine: Cosine of the angle between its two vectors.
    """

    text: str
    prompt: str | None
    cosine: float


@dataclass(frozen=True)
class SpaceComparison:
    """What `compare_spaces` found. The cosines are NaN where nothing is shared.

    Attributes:
        a: Name of the one space.
        b: Name of the other.
        shared: Texts (with the same prompt) that both hold.
        only_a: Texts that only the one holds.
        only_b: Texts that only the other holds.
        cosine_mean: Mean cosine over the shared texts.
        cosine_min: Least cosine.
        cosine_p1: 1st percentile of the cosines.
        moved: The texts whose vectors differ most, the most moved first; ten unless told.
        damaged: Shared texts that were left out because a row failed its checksum.
    """

    a: str
    b: str
    shared: int
    only_a: int
    only_b: int
    cosine_mean: float
    cosine_min: float
    cosine_p1: float
    moved: list[TextCosine]
    damaged: int = 0

    def __str__(self) -> str:
        lines = [f"a: {self.a}", f"b: {self.b}"]
        lines.append(
            f"{self.shared:,} shared texts, {self.only_a:,} only in a, {self.only_b:,} only in b"
        )
        if self.damaged:
            lines.append(f"{self.damaged:,} left out: damaged rows")
        if self.shared:
            lines.append(
                f"cosine: mean {self.cosine_mean:.6f}, 1st percentile {self.cosine_p1:.6f}, "
                f"minimum {self.cosine_min:.6f}"
            )
            moved = [one for one in self.moved if one.cosine < 1]
            lines.append("moved most:" if moved else "none has moved")
            lines += [f"  {m.cosine:.6f}  {(m.prompt or '') + m.text!r:.80}" for m in moved]
        return "\n".join(lines)


def compare_spaces(a: Space, b: Space, *, most_moved: int = 10) -> SpaceComparison:
    """Compare the vectors of the texts that two spaces share.

    float16 against float32, one vLLM version against the next, one checkpoint against another:
    texts are matched by prompt and text, whatever the identities say.

    Args:
        a: A space of vectors, with texts.
        b: Another one.
        most_moved: How many of the most moved texts to name.

    Returns:
        Counts, cosines and the most moved texts. Memory: about 100 bytes a row.

    Raises:
        ConfigError: A space holds scores, or the vectors have different numbers of components.
        CacheError: A space has no texts (`store_text=False`), or cannot be read.
    """
    first, second = _open(a), _open(b)
    if None not in (first.dim, second.dim) and first.dim != second.dim:
        raise ConfigError(
            f"{a.name} has vectors of {first.dim} components and {b.name} of {second.dim}: there "
            "is no angle between them. Compare spaces of the same dimension."
        )
    mine, theirs = _index_texts(first), _index_texts(second)
    angles, positions, damaged = _cosines(first, second, mine, theirs)
    if damaged:
        logger.warning(
            "%d shared texts are left out: their rows in %s or %s fail their checksum.",
            damaged,
            a.location,
            b.location,
        )
    order = np.argsort(angles, kind="stable")[:most_moved]
    empty = float("nan")
    return SpaceComparison(
        a=a.name,
        b=b.name,
        shared=len(angles),
        only_a=len(mine) - len(angles) - damaged,
        only_b=len(theirs) - len(angles) - damaged,
        cosine_mean=float(angles.mean()) if len(angles) else empty,
        cosine_min=float(angles.min()) if len(angles) else empty,
        cosine_p1=float(np.percentile(angles, 1)) if len(angles) else empty,
        moved=_texts_at(first, positions[order], angles[order]),
        damaged=damaged,
    )


def _open(space: Space) -> SpaceSnapshot:
    """The space's rows, indexed."""
    snapshot = space.refresh()
    if space.layout is not VECTORS:
        raise ConfigError(f"{space.location} holds scores, not vectors: they have no angle.")
    if not set(VECTORS.texts) <= set(snapshot.columns):
        raise CacheError(
            f"{space.location} was begun with store_text=False: without texts, its rows cannot be "
            "matched with another space's."
        )
    return snapshot


def _text_keys(batch: pa.RecordBatch) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Keys over prompt and text alone, and which rows of the batch have a text."""
    texts = batch.column("text").to_pylist()
    prompts = batch.column("prompt").to_pylist()
    rows = [row for row, text in enumerate(texts) if text is not None]
    known = [_UNKNOWN_PROMPT if prompts[row] is None else prompts[row] for row in rows]
    keys = pair_keys(b"", ("", ""), known, [texts[row] for row in rows])
    return keys, np.array(rows, np.int64)


def _index_texts(space: SpaceSnapshot) -> KeyIndex:
    """Where each text of a space lies; of a text that is there twice, the first."""
    keys, positions, start = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)], 0
    row_ids = [np.empty(0, np.uint64)]
    for batch in space.scan(list(VECTORS.texts)):
        found, rows = _text_keys(batch)
        keys.append(found)
        positions.append(rows + start)
        row_ids.append(batch.column("_rowid").to_numpy()[rows])
        start += batch.num_rows
    everything, where = np.concatenate(keys), np.concatenate(positions)
    index = KeyIndex.build(everything, np.concatenate(row_ids))
    first = run_starts(index.keys)
    return KeyIndex(index.heads[first], index.tails[first], where[index.positions[first]])


def _cosines(
    first: SpaceSnapshot, second: SpaceSnapshot, index_first: KeyIndex, index_second: KeyIndex
) -> tuple[Doubles, npt.NDArray[np.int64], int]:
    """Cosines of shared texts, their positions in `first`, and the number of damaged rows."""
    spots = index_second.find(index_first.keys)
    shared = np.flatnonzero(spots >= 0)
    shared = shared[np.argsort(index_first.positions[shared])]  # front to back
    mine, theirs = index_first.positions[shared], spots[shared]
    keys_first, keys_second = first.keys(), second.keys()
    found = np.empty(len(shared))
    intact = np.ones(len(shared), bool)
    for start in range(0, len(shared), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        left, bad_left = first.read_all(mine[part], keys_first[mine[part]])
        right, bad_right = second.read_all(theirs[part], keys_second[theirs[part]])
        intact[part] = ~(bad_left | bad_right)
        found[part] = cosines(left, right)
    return found[intact], mine[intact], int((~intact).sum())


def _texts_at(
    snapshot: SpaceSnapshot, positions: npt.NDArray[np.int64], angles: Doubles
) -> list[TextCosine]:
    rows = snapshot.take(positions, VECTORS.texts).to_pylist()
    return [
        TextCosine(row["text"], row["prompt"], float(angle))
        for row, angle in zip(rows, angles, strict=True)
    ]
