"""Checksums: 64 bits a row that tell a flipped bit, which Lance returns without a word.

    checksum = xxh3_64( key, 16 bytes  ||  vector, dim * 4 bytes, little-endian float32 )

The key is the one that was asked for, not the one that is stored, so that a row handed out for
another's key fails too. xxh3 costs about 0.6 us a row of 384 components, a fifth of a warm read;
a weighted sum in numpy is faster still but has no standard by which others can check a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from embcache.identity.identity import Identity
from embcache.identity.keys import KEY_BYTES, Keys, pair_keys, text_keys
from embcache.store.schema import VECTORS, Layout

_SCRATCH_BYTES = 2**20  # stays in the processor's cache between the copy and the hashing


def row_checksums(keys: Keys, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Checksum each row.

    Args:
        keys: `(n, 2) uint64`.
        vectors: `(n, dim) float32`, C-contiguous.

    Returns:
        `(n,) uint64`.
    """
    count, dim = vectors.shape
    width = KEY_BYTES + 4 * dim
    step = max(1, min(count, _SCRATCH_BYTES // width))
    scratch = np.empty((step, width), np.uint8)
    sums = np.empty(count, np.uint64)
    digest = xxhash.xxh3_64_intdigest
    key_bytes = keys.astype(">u8").view(np.uint8).reshape(count, KEY_BYTES)
    vector_bytes = np.ascontiguousarray(vectors, "<f4").view(np.uint8).reshape(count, 4 * dim)
    for start in range(0, count, step):
        stop = min(start + step, count)
        rows = scratch[: stop - start]
        rows[:, :KEY_BYTES] = key_bytes[start:stop]
        rows[:, KEY_BYTES:] = vector_bytes[start:stop]
        sums[start:stop] = [digest(row) for row in rows]
    return sums


BY_DIRECTORY = "by directory"
"""`Identity.prompt_handling` of LanceCache, whose keys are of the text alone."""

# Under these the recorded prompt is what went into the key. Elsewhere something else did (task and
# prompt type, other columns), which the table does not hold: such rows cannot be verified, and
# must not be taken for wrong ones.
_RECORDED_PROMPT = frozenset(
    {
        "prompt + text",
        "score(query_prefix + query, document_prefix + document)",
        "applied_prompt",
        "instruction",
        "prefix",
        "prompt of Sentence Transformers",
    }
)

_PREFIXES = {"vector": ("prompt",), "score": ("query_prefix", "document_prefix")}


def key_fits(
    batch: pa.RecordBatch | pa.Table, keys: Keys, layout: Layout, identity: Identity
) -> npt.NDArray[np.int8]:
    """Compute keys again and compare.

    Args:
        batch: `n` rows with the layout's text columns, as far as the table has them.
        keys: `(n, 2) uint64`, as they are stored.
        layout: Whether they are of texts or of pairs.
        identity: The table's.

    Returns:
        `(n,) int8`: 1 where the key fits, 0 where it does not, -1 where that cannot be known.
    """
    result = np.full(len(keys), -1, np.int8)
    handling = identity.prompt_handling
    known = handling in _RECORDED_PROMPT or handling == BY_DIRECTORY
    if not known or not set(layout.texts) <= set(batch.schema.names):
        return result
    columns = {name: batch.column(name).to_pylist() for name in layout.texts}
    if handling == BY_DIRECTORY:
        columns["prompt"] = [""] * len(keys)
    prefixes = _PREFIXES[layout.value]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        if None not in values:
            groups[tuple(columns[name][row] or "" for name in prefixes)].append(row)
    for prefix, rows in groups.items():
        texts = [[columns[n][row] or "" for row in rows] for n in layout.texts if n not in prefixes]
        expected = _keys(layout, identity.to_bytes(), prefix, texts)
        result[rows] = (expected == keys[rows]).all(axis=1)
    return result


def _keys(
    layout: Layout, identity: bytes, prefix: tuple[str, ...], texts: Sequence[Sequence[str]]
) -> Keys:
    if layout is VECTORS:
        return text_keys(identity, prefix[0], texts[0])
    return pair_keys(identity, (prefix[0], prefix[1]), texts[0], texts[1])
