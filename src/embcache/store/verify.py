"""Whether a row is right: its checksum, its values, and that its key is that of its text.

    checksum = xxh3_64( key, 16 bytes  ||  vector, dim * 4 bytes, little-endian float32 )

A checksum of 64 bits a row, because Lance returns flipped bits without a word. Where a key was
asked for, that one is hashed and not the one that is stored, so that a row handed out for another's
key fails too. A weighted sum in NumPy would be faster but has no standard by which others can check
a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from embcache.identity import keys as key_bytes
from embcache.identity.identity import Identity
from embcache.identity.keys import KEY_BYTES, Keys, pair_keys, text_keys
from embcache.identity.prompt_rules import handling_of
from embcache.store.schema import VECTORS, Layout

_SCRATCH_BYTES = 2**20  # stays in the processor's cache between the copy and the hashing

Values = npt.NDArray[np.float32]
"""`(n, dim) float32`: vectors; or scores, with `dim` 1."""


@dataclass(frozen=True, eq=False)
class Verified:
    """Rows of a table, or of an exported file, each checked against its own key.

    Attributes:
        batch: The rows, with `key`, values, `checksum` and whatever other columns were asked for.
        keys: `(n, 2) uint64`, as they are stored.
        values: `(n, dim) float32`.
        damaged: `(n,) bool`, True where the checksum fails or there is NaN or infinity.
    """

    batch: pa.RecordBatch
    keys: Keys
    values: Values
    damaged: npt.NDArray[np.bool_]

    @property
    def row_ids(self) -> npt.NDArray[np.uint64]:
        """`(n,) uint64`, Lance's stable row ids; only of batches that were read with them."""
        row_ids: npt.NDArray[np.uint64] = self.batch.column("_rowid").to_numpy()
        return row_ids


def verify(batch: pa.RecordBatch, layout: Layout) -> Verified:
    """Check each row of a batch with its own key.

    Args:
        batch: `n` rows with the columns `key`, `checksum` and the layout's value column.
        layout: Whether the values are vectors or scores.
    """
    keys, values = batch_keys(batch), batch_values(batch, layout)
    sums = pc.fill_null(batch.column("checksum"), 0).to_numpy(zero_copy_only=False)
    damaged = damaged_rows(keys, values, sums)
    for name in ("key", "checksum"):  # never null in what embcache wrote
        if batch.column(name).null_count:
            damaged |= batch.column(name).is_null().to_numpy(zero_copy_only=False)
    return Verified(batch, keys, values, damaged)


def batch_keys(batch: pa.RecordBatch | pa.Table) -> Keys:
    """The column `key` of `n` rows, `(n, 2) uint64`."""
    column = batch.column("key")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return key_bytes.from_bytes(
        b"".join(
            memoryview(chunk.buffers()[1])[KEY_BYTES * chunk.offset :][: KEY_BYTES * len(chunk)]
            for chunk in chunks
        )
    )


def batch_values(batch: pa.RecordBatch, layout: Layout) -> Values:
    """The value column of `n` rows, `(n, dim) float32`; what is null becomes NaN.

    Where there are no nulls this is a view of Arrow's buffer, not a copy.
    """
    values: Values
    column = batch.column(layout.value)
    if layout.value == "score":
        flat, dim = column, 1
    else:
        flat, dim = column.flatten(), column.type.list_size
        if column.null_count:  # of whole vectors, which `flatten` leaves out
            values = np.full((len(column), dim), np.nan, np.float32)
            there = column.is_valid().to_numpy(zero_copy_only=False)
            values[there] = flat.to_numpy(zero_copy_only=False).reshape(-1, dim)
            return values
    values = flat.to_numpy(zero_copy_only=False).reshape(len(column), dim)
    return values


def damaged_rows(
    keys: Keys, values: Values, checksums: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Compare checksums, and look for NaN and infinity, which embcache never writes.

    Args:
        keys: `(n, 2) uint64`, the keys that the rows should have.
        values: `(n, dim) float32`.
        checksums: `(n,) uint64`, as they are stored.

    Returns:
        `(n,) bool`, True where a row is damaged.
    """
    return np.asarray((row_checksums(keys, values) != checksums) | _not_finite(values))


def row_checksums(keys: Keys, values: Values) -> npt.NDArray[np.uint64]:
    """Compute the checksum of each row.

    Args:
        keys: `(n, 2) uint64`.
        values: `(n, dim) float32`.

    Returns:
        `(n,) uint64`.
    """
    count, dim = values.shape
    width = KEY_BYTES + 4 * dim
    step = max(1, min(count, _SCRATCH_BYTES // width))
    scratch = np.empty((step, width), np.uint8)
    memory = scratch.reshape(-1).data
    each = [memory[at : at + width] for at in range(0, step * width, width)]
    sums = np.empty(count, np.uint64)
    digest = xxhash.xxh3_64_intdigest
    raw_keys = keys.astype(">u8").view(np.uint8).reshape(count, KEY_BYTES)
    raw_values = np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(count, 4 * dim)
    for start in range(0, count, step):
        stop = min(start + step, count)
        rows = scratch[: stop - start]
        rows[:, :KEY_BYTES] = raw_keys[start:stop]
        rows[:, KEY_BYTES:] = raw_values[start:stop]
        sums[start:stop] = list(map(digest, each[: stop - start]))
    return sums


def key_fits(
    batch: pa.RecordBatch | pa.Table, keys: Keys, layout: Layout, identity: Identity
) -> npt.NDArray[np.int8]:
    """Compute keys again from identity, prompt and text, where a row holds these, and compare.

    Args:
        batch: `n` rows with the layout's text columns, as far as the table has them.
        keys: `(n, 2) uint64`, as they are stored.
        layout: Whether they are of texts or of pairs.
        identity: The table's.

    Returns:
        `(n,) int8`: 1 where the key fits, 0 where it does not, -1 where that cannot be known.
    """
    result = np.full(len(keys), -1, np.int8)
    in_key = handling_of(identity).in_key
    if in_key == "unknown" or not set(layout.texts) <= set(batch.schema.names):
        return result
    columns = {name: batch.column(name).to_pylist() for name in layout.texts}
    if in_key == "none":
        columns["prompt"] = [""] * len(keys)
    prefixes = layout.prompts
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


def _not_finite(values: Values) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):  # either one would show in the sum, 8 times cheaper
            return np.zeros(len(values), bool)
    return np.asarray(~np.isfinite(values).all(axis=1))
