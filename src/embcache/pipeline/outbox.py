"""Rows on their way to an upstream cache, collected so that it gets few, large commits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embcache.store import Column, Rows
from embcache.store.forks import ForkLock

FULL_BYTES = 64 * 2**20


class Outbox:
    """Collects rows in memory. Threads may share it."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._chunks: list[Rows] = []
        self._bytes = 0

    def put(self, rows: Rows, text_bytes: int) -> bool:
        """Add rows.

        Args:
            rows: The rows.
            text_bytes: Memory that their texts take.

        Returns:
            Whether there are `FULL_BYTES` of them by now.
        """
        with self._lock:
            self._chunks.append(rows)
            self._bytes += rows.values.nbytes + text_bytes
            return self._bytes >= FULL_BYTES

    def take(self) -> Rows | None:
        """All rows that are in it, which is empty then; None for none."""
        with self._lock:
            chunks, self._chunks, self._bytes = self._chunks, [], 0
        return _joined(chunks) if chunks else None


def _joined(chunks: Sequence[Rows]) -> Rows:
    counted = [chunk.n_tokens for chunk in chunks if chunk.n_tokens is not None]
    return Rows(
        np.concatenate([chunk.keys for chunk in chunks]),
        np.concatenate([chunk.values for chunk in chunks]),
        {
            name: [value for chunk in chunks for value in _listed(chunk.columns[name], len(chunk))]
            for name in chunks[0].columns
        },
        np.concatenate(counted) if len(counted) == len(chunks) else None,
    )


def _listed(column: Column, count: int) -> Sequence[str | None]:
    return [column] * count if column is None or isinstance(column, str) else column
