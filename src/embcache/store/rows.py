"""Rows of a space as Arrow has them: made, brought into a schema, chosen by a filter."""

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
from embcache.store.schema import SCORES, VECTORS, Layout, schema_layout
from embcache.store.verify import Values, row_checksums

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
    values: Values
    columns: Mapping[str, Column] = field(default_factory=dict)
    n_tokens: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Some of the rows, by their numbers, `(m,) int64`."""
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return self  # the usual case: nobody else was first with any of them
        columns = {
            name: column
            if column is None or isinstance(column, str)
            else [column[row] for row in rows.tolist()]
            for name, column in self.columns.items()
        }
        n_tokens = None if self.n_tokens is None else self.n_tokens[rows]
        return Rows(self.keys[rows], self.values[rows], columns, n_tokens)

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
        # Columns that somebody added are null, and so are those whose name a flip has changed.
        return pa.Table.from_arrays(
            [
                columns[field.name] if field.name in columns else pa.nulls(count, field.type)
                for field in schema
            ],
            schema=schema,
        )

    def _values(self, kind: pa.DataType) -> pa.Array:
        flat = pa.array(self.values.reshape(-1))
        if not pa.types.is_fixed_size_list(kind):
            return flat
        return pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])


def _strings(column: Column, count: int) -> pa.Array:
    if column is None or isinstance(column, str):
        return pa.repeat(pa.scalar(column, pa.string()), count)
    return pa.array(column, pa.string())


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows in a schema's columns: null where they have none, and no others."""
    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class RowFilter:
    """Which rows of a space are meant.

    Attributes:
        prompt: Only rows with this prompt; None for all.
        contains: Only rows with this in their text (of scores: in query or document); None for all.
    """

    prompt: str | None = None
    contains: str | None = None

    @property
    def active(self) -> bool:
        """Whether it leaves anything out."""
        return self.prompt is not None or self.contains is not None

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns that `apply` needs.

        Raises:
            ConfigError: The space has no such column.
        """
        layout = schema_layout(schema)
        if self.prompt is not None and "prompt" not in schema.names:
            raise ConfigError(
                f"prompt={self.prompt!r}: the space has no column `prompt` (it holds scores, or "
                "was begun with store_text=False). Leave this filter out."
            )
        if self.contains is not None and layout.texts[0] not in schema.names:
            raise ConfigError(
                f"contains={self.contains!r}: the space has no texts (store_text=False). Leave "
                "this filter out."
            )
        texts = [] if self.contains is None else _text_columns(layout)
        return [*([] if self.prompt is None else ["prompt"]), *texts]

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that fit; a null fits nothing, and so does a column that could not be read."""
        if self.prompt is not None:
            if "prompt" not in batch.schema.names:
                return batch.slice(0, 0)
            batch = batch.filter(pc.equal(batch.column("prompt"), self.prompt))
        if self.contains is not None:
            texts = [name for name in _TEXTS if name in batch.schema.names]
            if not texts:
                return batch.slice(0, 0)
            found = [pc.match_substring(batch.column(name), self.contains) for name in texts]
            mask = pc.or_kleene(found[0], found[-1])
            batch = batch.filter(pc.fill_null(mask, False))
        return batch


def _text_columns(layout: Layout) -> tuple[str, ...]:
    """`text`; or `query` and `document`."""
    return tuple(name for name in layout.texts if name not in layout.prompts)


# Of both layouts: a batch without its values does not say which one it is of.
_TEXTS = _text_columns(VECTORS) + _text_columns(SCORES)
