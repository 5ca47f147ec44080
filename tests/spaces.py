from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows, Space, SpaceInfo

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


def info(space: Space) -> SpaceInfo:
    return SpaceInfo(space.path, space.metadata)


def vectors_of(texts: list[str], vectors: np.ndarray, prompt: str | None = "p: ") -> Rows:
    """Rows with vectors of one's own."""
    keys = text_keys(IDENTITY.to_bytes(), prompt or "unknown", texts)
    return Rows(keys, vectors.astype(np.float32), {"text": texts, "prompt": prompt})


@pytest.fixture
def scores(tmp_path: Path) -> SpaceInfo:
    database = Database(tmp_path / "cache", writable=True)
    space = database.space(IDENTITY, IDENTITY.model, "vllm 1.0", layout=SCORES)
    keys = pair_keys(IDENTITY.to_bytes(), ("q: ", ""), ["a", "a"], ["b", "c"])
    columns = {
        "query": "a",
        "document": ["b", "c"],
        "query_prefix": "q: ",
        "document_prefix": "",
        "task": "Task",
    }
    space.append(Rows(keys, np.array([[0.5], [0.25]], np.float32), columns))
    return info(space)
