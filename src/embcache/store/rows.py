"""Rows to be written, as one Arrow batch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache import keys as key_bytes
from embcache.keys import KEY_BYTES, Keys
from embcache.store.checksum import row_checksums


@dataclass(frozen=True)
class Rows:
    """One chunk of a space.

    Attributes:
        keys: `(n, 2) uint64`.
        vectors: `(n, dim) float32`, finite, row i belongs to keys[i].
        texts: `n` texts, without the prompt.
        prompt: What the engine saw in front of each text.
        n_tokens: `(n,) int32`.
        prompt_type: query, document or None: of this first write, not part of the key.
        task: Name of the task of this first write, not part of the key.
    """

    keys: Keys
    vectors: npt.NDArray[np.float32]
    texts: list[str]
    prompt: str
    n_tokens: npt.NDArray[np.int32]
    prompt_type: str | None
    task: str | None

    def to_arrow(self, schema: pa.Schema, *, store_text: bool) -> pa.Table:
        """In the columns of a space's schema; texts are null where it has them and they are off."""
        count, dim = self.vectors.shape
        constants = {"prompt_type": self.prompt_type, "task": self.task}
        columns = {
            "key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(KEY_BYTES), count, [None, pa.py_buffer(key_bytes.to_bytes(self.keys))]
            ),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.reshape(-1)), dim),
            "checksum": pa.array(row_checksums(self.keys, self.vectors)),
            "n_tokens": pa.array(self.n_tokens, pa.int32()),
            "created_at": pa.repeat(
                pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC")), count
            ),
            "text": pa.array(self.texts if store_text else [None] * count, pa.string()),
            "prompt": pa.repeat(pa.scalar(self.prompt if store_text else None, pa.string()), count),
            **{
                name: pa.repeat(pa.scalar(value, pa.string()), count)
                for name, value in constants.items()
            },
        }
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
