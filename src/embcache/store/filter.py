"""Choosing rows by prompt and by what their texts contain."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from embcache.errors import ConfigError
from embcache.store.schema import schema_layout

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
