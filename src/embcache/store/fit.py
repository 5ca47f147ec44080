"""Whether a row's key is that of its identity, prompt and text, where these are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.identity import Identity
from embcache.keys import Keys, pair_keys, text_keys
from embcache.store.schema import VECTORS, Layout

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
