"""A Lance table as a backend of mteb's own CachedEmbeddingWrapper."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embcache.encoders.inputs import OTHER_MODALITIES
from embcache.errors import CacheError, ConfigError, InputError, NonFiniteError
from embcache.identity import keys as key_bytes
from embcache.identity.identity import ITEM_ALONE, Identity
from embcache.identity.keys import text_keys
from embcache.store import Database, Rows, Space

logger = logging.getLogger(__name__)

# CachedEmbeddingWrapper has one directory a task and prompt type, and tells its backend nothing
# about the model: what these vectors are is what the user put into the directory.
IDENTITY = Identity(
    model="mteb CachedEmbeddingWrapper",
    revision="",
    dtype="unknown",
    engine="unknown",
    prompt_handling=ITEM_ALONE.name,
    truncation="unknown",
)
_HASHED = "mteb hash_item"  # in the prompt's place, for items that are not text alone
_BLOCK_ROWS = 4096

Vector = npt.NDArray[np.float32]


class LanceCache:
    """mteb's `CacheBackendProtocol` over a Lance table.

    `CachedEmbeddingWrapper(model, path, cache_backend=LanceCache)`. Beside mteb's own backends: a
    batch with duplicates gets correct vectors; a save is one atomic commit, so a kill leaves the
    table as it was; several processes may save at once, and what was committed first counts; every
    row is checked when it is read. As with those, the key is the item alone: use one path for each
    model. `CachedEncoder` has model, revision and prompt in its keys.

    Args:
        directory: Where the table is; made if need be.
        store_text: Whether the table keeps the texts.

    Raises:
        ConfigError: There is no directory given.
        CacheError: It is a file or cannot be written.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, store_text: bool = True
    ) -> None:
        if directory is None:
            raise ConfigError("LanceCache needs a directory: LanceCache('cache/my-model').")
        self._database = Database(directory, writable=True)
        self._store_text = store_text
        self._pending: dict[bytes, tuple[Vector, str | None]] = {}
        self._space: Space | None = None
        self._positions: dict[bytes, int] = {}
        self._keys = np.empty((0, 2), np.uint64)
        self._block = (0, np.empty((0, 0), np.float32), np.empty(0, bool))
        self._last = -1
        self._opened()

    def add(self, items: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        """Add vectors, in memory until `save`. An item that is there already keeps its vector.

        Args:
            items: `n` items with `text`, `image`, `audio` or `video`.
            vectors: `(n, dim)`, array or tensor, kept as float32.

        Raises:
            InputError: An item has none of these, or there are not as many vectors as items.
            NonFiniteError: A vector holds NaN or infinity.
            CacheError: The vectors have another dimension than those that are there.
        """
        matrix = _matrix(vectors)
        if len(matrix) != len(items):
            raise InputError(f"{len(items)} items and {len(matrix)} vectors: one each is needed.")
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise NonFiniteError(
                f"The vector of item {row}, {str(items[row])[:80]}, holds NaN or infinity; nothing "
                "was added. A model in float16 may need bfloat16 or float32."
            )
        self._check_dim(matrix.shape[1])
        for item, vector in zip(items, matrix, strict=True):
            key = _key(item)
            if key not in self._positions and key not in self._pending:
                self._pending[key] = (vector, _text(item))

    def get_vector(self, item: Mapping[str, Any]) -> Vector | None:
        """The item's vector, `(dim,) float32`, a copy; None if it is not there.

        A row that fails its checksum is dropped with a warning: None, so it is encoded again.
        """
        key = _key(item)
        self._opened()
        if key in self._pending:
            return self._pending[key][0].copy()
        position = self._positions.get(key)
        if position is None:
            return None
        vector, damaged = self._read(position)
        if damaged:  # in the version that is open; another process may have mended it since
            self.load()
            position = self._positions.get(key)
            if position is None:
                return None
            vector, damaged = self._read(position)
        if not damaged:
            return vector
        space = self._opened()
        logger.warning(
            "A row of %s fails its checksum (damaged on disk). It is dropped and encoded again.",
            space.path,
        )
        space.delete(key_bytes.from_bytes(key))
        self.load()
        return None

    def __contains__(self, item: Mapping[str, Any]) -> bool:
        key = _key(item)
        self._opened()
        return key in self._pending or key in self._positions

    def __len__(self) -> int:
        self._opened()
        return len(self._positions) + sum(key not in self._positions for key in self._pending)

    def save(self) -> None:
        """Commit what was added, in one transaction."""
        if not self._pending:
            return
        space = self._opened()
        space.refresh()
        keys = key_bytes.from_bytes(b"".join(self._pending))
        values = list(self._pending.values())
        new = np.flatnonzero(space.find(keys) < 0)  # another process may have been first
        try:
            if len(new):
                texts = [values[row][1] for row in new]
                vectors = np.stack([values[row][0] for row in new])
                space.append(Rows(keys[new], vectors, {"text": texts, "prompt": None}))
            self._pending.clear()
        finally:
            self.load()  # failed or not: refresh may have moved every row

    def load(self) -> None:
        """See what is in the table now, by whatever process."""
        space = self._opened()
        space.refresh()
        self._keys = space.keys()
        raw = key_bytes.to_bytes(self._keys)
        count = len(self._keys)
        # Of rows with the same key the one that was committed first, wherever it lies now.
        first = space.find(self._keys).tolist()
        self._positions = {raw[16 * i : 16 * i + 16]: first[i] for i in range(count)}
        self._block = (0, np.empty((0, 0), np.float32), np.empty(0, bool))
        self._last = -1

    def close(self) -> None:
        """Save what is pending and forget the rest; any use after that opens it again."""
        self.save()
        self._space = None

    def _opened(self) -> Space:
        if self._space is None:
            self._space = self._database.space(
                IDENTITY, "items", "unknown", store_text=self._store_text
            )
            self.load()
        return self._space

    def _read(self, position: int) -> tuple[Vector, bool]:
        """One row; a block ahead where rows are asked for about in their order, as mteb does."""
        start, vectors, damaged = self._block
        if not start <= position < start + len(vectors):
            forward = 0 < position - self._last <= _BLOCK_ROWS
            ahead = _BLOCK_ROWS if forward else 1
            positions = np.arange(position, min(position + ahead, len(self._keys)))
            space = self._opened()
            vectors = np.empty((len(positions), space.dim or 0), np.float32)
            rows = np.arange(len(positions))
            damaged = space.read(positions, self._keys[positions], vectors, rows)
            start = position
            if ahead > 1:
                self._block = (start, vectors, damaged)
        self._last = position
        return vectors[position - start].copy(), bool(damaged[position - start])

    def _check_dim(self, dim: int) -> None:
        known = next((len(vector) for vector, _ in self._pending.values()), self._opened().dim)
        if known not in (None, dim):
            raise CacheError(
                f"{self._opened().path} holds vectors of {known} components, and these have {dim}: "
                "another model's? Use one path for each model."
            )


def _key(item: Mapping[str, Any]) -> bytes:
    text = _text(item)
    if text is not None:
        return key_bytes.to_bytes(text_keys(_PREFIX, "", [text]))
    if not any(name in item for name in OTHER_MODALITIES):
        raise InputError(
            f"An item needs 'text', 'image', 'audio' or 'video', not only {list(item)!r}."
        )
    from mteb._content_hashes import hash_item  # what mteb's own backends use

    return key_bytes.to_bytes(text_keys(_PREFIX, _HASHED, [hash_item(dict(item))]))


_PREFIX = IDENTITY.to_bytes()


def _text(item: Mapping[str, Any]) -> str | None:
    """The text of an item that is nothing else."""
    text = item.get("text")
    alone = isinstance(text, str) and not any(name in item for name in OTHER_MODALITIES)
    return text if alone else None


def _matrix(vectors: Any) -> npt.NDArray[np.float32]:
    if hasattr(vectors, "detach"):  # a torch tensor; NumPy has no bfloat16
        vectors = vectors.detach().cpu().float().numpy()
    matrix = np.array(vectors, np.float32)  # a copy: the caller may reuse its own
    matrix = matrix[None, :] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2:
        raise InputError(
            f"The vectors have shape {matrix.shape}; one vector an item, (n, dim), is needed. "
            "Multi-vector (late-interaction) encoders cannot be cached here."
        )
    return matrix
