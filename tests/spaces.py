from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows, Space

_ANOTHER_USER = 12345
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
    snapshot = space.refresh()
    return snapshot.read_all(snapshot.find(rows.keys), rows.keys)


def add_blindly(space: Space, rows: Rows) -> None:
    """As a process does that does not see what others commit at the same moment: duplicates."""
    table = space.table()
    table.add(rows.to_arrow(table.schema, store_text=True))


def append_raw(space: Space, rows: Rows) -> None:
    """Past embcache's and LanceDB's own checks, as another tool would."""
    dataset = lance.dataset(str(space.location))
    lance.write_dataset(rows.to_arrow(dataset.schema, store_text=True), dataset, mode="append")


def folder(space: Space) -> Path:
    """The table's folder."""
    return Path(str(space.location))


@pytest.fixture
def open_space(tmp_path: Path) -> Callable[..., Space]:
    def open_(identity: Identity = IDENTITY, store_text: bool = True, **kwargs: Any) -> Space:
        database = Database(tmp_path / "cache", writable=True)
        return database.space(identity, identity.model, "vllm 1.0", store_text=store_text, **kwargs)

    return open_


def vectors_of(texts: list[str], vectors: np.ndarray, prompt: str | None = "p: ") -> Rows:
    """Rows with vectors of one's own."""
    keys = text_keys(IDENTITY.to_bytes(), prompt or "unknown", texts)
    return Rows(keys, vectors.astype(np.float32), {"text": texts, "prompt": prompt})


@pytest.fixture
def scores(tmp_path: Path) -> Space:
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
    space.add(Rows(keys, np.array([[0.5], [0.25]], np.float32), columns))
    return space


@contextmanager
def refused(*folders: Path) -> Iterator[None]:
    """Folders that this process may read and not write: another user's, where it is root.

    They must lie in a `shared_folder`. For root no mode counts, so its effective user is another
    one meanwhile; the modules of this Python may be out of its reach then.
    """
    import lancedb  # noqa: F401

    for place in folders:
        place.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(_ANOTHER_USER)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for place in folders:
            place.chmod(0o755)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may write to and enter; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o777)
        yield Path(made)


def no_hard_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EOPNOTSUPP) -> None:
    """What gcsfuse and exFAT say."""

    def link(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
