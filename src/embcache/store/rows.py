"""Rows to be written, as one Arrow batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embcache.errors import ConfigError
from embcache.identity import keys as key_bytes
from embcache.identity.keys import KEY_BYTES, Keys
from embcache.store.schema import schema_layout
from embcache.store.verify import row_checksums

Column = Sequence[str | None] | str | None
"""A string a row, or one for all rows; None is null."""


@dataclass(frozen=True)
class Rows:
    """One chunk of a space.

    Attributes:
        keys: `(n, 2) uint64`.
        values: `(n, dim) float32`, finite, row i belongs to keys[i]: vectors, or scores with
            `dim` 1.
        columns: The string columns by name, see `store.schema.Layout`; what is not there is null.
        n_tokens: `(n,) int32`; None where the engine does not say.
    """

    keys: Keys
    values: npt.NDArray[np.float32]
    columns: Mapping[str, Column] = field(default_factory=dict)
    n_tokens: npt.NDArray[np.int32] | None = None

    def to_arrow(self, schema: pa.Schema, *, store_text: bool) -> pa.Table:
        """In the columns of a space's schema; texts are null where it has them and they are off."""
        layout = schema_layout(schema)
        count = len(self.keys)
        hidden = () if store_text else layout.texts
        columns = {
            "key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(KEY_BYTES), count, [None, pa.py_buffer(key_bytes.to_bytes(self.keys))]
            ),
            layout.value: self._values(schema.field(layout.value).type),
            "checksum": pa.array(row_checksums(self.keys, self.values)),
            "n_tokens": pa.nulls(count, pa.int32())
            if self.n_tokens is None
            else pa.array(self.n_tokens, pa.int32()),
            "created_at": pa.repeat(
                pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC")), count
            ),
            **{
                name: _strings(None if name in hidden else self.columns.get(name), count)
                for name in layout.texts + layout.notes
            },
        }
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _values(self, kind: pa.DataType) -> pa.Array:
        flat = pa.array(self.values.reshape(-1))
        if not pa.types.is_fixed_size_list(kind):
            return flat
        return pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])


def _strings(column: Column, count: int) -> pa.Array:
    if column is None or isinstance(column, str):
        return pa.repeat(pa.scalar(column, pa.string()), count)
    return pa.array(column, pa.string())


def batch_keys(batch: pa.RecordBatch | pa.Table) -> Keys:
    """The column `key`, `(n, 2) uint64`."""
    column = batch.column("key")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return key_bytes.from_bytes(
        b"".join(
            memoryview(chunk.buffers()[1])[KEY_BYTES * chunk.offset :][: KEY_BYTES * len(chunk)]
            for chunk in chunks
        )
    )


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in a schema's columns: null where they have none, and no others."""
    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


_PROMPT = "prompt"
_TEXTS = ("text", "query", "document")


def check_filters(schema: pa.Schema, prompt: str | None, contains: str | None) -> None:
    """Refuse what `filter_rows` could not do on a space of this schema.

    Raises:
        ConfigError: The space has no column that a filter needs.
    """
    if prompt is not None and _PROMPT not in schema.names:
        raise ConfigError(
            f"prompt={prompt!r}: the space has no column `prompt` (it holds scores, or was begun "
            "with store_text=False). Leave this filter out."
        )
    if contains is not None and schema_layout(schema).texts[0] not in schema.names:
        raise ConfigError(
            f"contains={contains!r}: the space has no texts (store_text=False). Leave this filter "
            "out."
        )


def filter_rows(batch: pa.RecordBatch, prompt: str | None, contains: str | None) -> pa.RecordBatch:
    """Rows that fit; a null fits nothing, and so does a column that could not be read.

    Args:
        batch: With the columns that the filters need.
        prompt: Only rows with this prompt.
        contains: Only rows with this in their text; in query or document, for scores.
    """
    if prompt is not None:
        if _PROMPT not in batch.schema.names:
            return batch.slice(0, 0)
        batch = batch.filter(pc.equal(batch.column(_PROMPT), prompt))
    if contains is not None:
        texts = [name for name in _TEXTS if name in batch.schema.names]
        if not texts:
            return batch.slice(0, 0)
        found = [pc.match_substring(batch.column(name), contains) for name in texts]
        mask = pc.or_kleene(found[0], found[-1])
        batch = batch.filter(pc.fill_null(mask, False))
    return batch
