from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.identity import Identity
from embcache.keys import text_keys
from embcache.store import Database, Rows, Space

IDENTITY = Identity("organization/name", "0" * 40, "float32")


def make_rows(texts: list[str], dim: int = 8, seed: int = 0, identity: Identity = IDENTITY) -> Rows:
    vectors = np.random.default_rng(seed).standard_normal((len(texts), dim)).astype(np.float32)
    return Rows(
        text_keys(identity.to_bytes(), "p: ", texts),
        vectors,
        {"text": texts, "prompt": "p: ", "prompt_type": "query", "task": "Task"},
        np.arange(len(texts), dtype=np.int32),
    )


def read_all(space: Space, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Vectors by key, and which rows failed."""
    out = np.full(rows.values.shape, np.nan, np.float32)
    failed = space.read(space.find(rows.keys), rows.keys, out, np.arange(len(out)))
    return out, failed


@pytest.fixture
def open_space(tmp_path: Path) -> Callable[..., Space]:
    def open_(identity: Identity = IDENTITY, store_text: bool = True, **kwargs: Any) -> Space:
        database = Database(tmp_path / "cache", writable=True)
        space = database.space(identity, identity.model, "vllm 1.0", store_text=store_text)
        space.refresh()
        return space

    return open_
