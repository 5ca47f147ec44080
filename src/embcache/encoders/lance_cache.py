"""A Lance table as a backend of mteb's own CachedEmbeddingWrapper."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embcache.encoders.inputs import OTHER_MODALITIES
from embcache.errors import CacheError, CacheWriteError, ConfigError, InputError, NonFiniteError
from embcache.identity import keys as key_bytes
from embcache.identity.identity import ITEM_ALONE, Identity
from embcache.identity.keys import text_keys
from embcache.pipeline.policies import OnWriteError, check_policies
from embcache.store import Database, Rows, Space, SpaceSnapshot, Verified
from embcache.store.index import unique_keys
from embcache.store.salvage import is_damage

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

    Use it as `CachedEmbeddingWrapper(model, path, cache_backend=LanceCache)`. Better than mteb's
    own backends: a batch with duplicates gets correct vectors; a save is one atomic commit, so a
    kill leaves the table as it was; several processes may save at once, and what was committed
    first counts; every row is checked when it is read. As with them, the key is the item alone: use
    one path for each model. `CachedEncoder` has model, revision and prompt in its keys.

    Args:
        directory: Directory or URL of the table; made if need be. mteb's CachedEmbeddingWrapper
            itself takes directories only.
        storage_options: What the store of a URL needs to be opened, as for `VllmEncoderWrapper`.
        store_text: Whether the table keeps the texts beside their vectors.
        on_write_error: What `save` does where the table cannot be written (disk full, say): "warn"
            keeps what was added in memory, and says so once; "raise" raises CacheWriteError.

    Raises:
        ConfigError: No directory is given, or a storage option is no string.
        CacheError: The directory is a file or cannot be written.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        store_text: bool = True,
        on_write_error: OnWriteError = "warn",
    ) -> None:
        check_policies("encode", on_write_error)
        if directory is None:
            raise ConfigError("LanceCache needs a directory: LanceCache('cache/my-model').")
        self._database = Database(directory, storage_options, writable=True)
        self._store_text = store_text
        self._pending: dict[bytes, tuple[Vector, str | None]] = {}
        self._space: Space | None = None
        self._snapshot = SpaceSnapshot()
        self._block: tuple[int, Verified] | None = None  # read ahead, and where it begins
        self._last = -1
        self._tried = self._told = False
        self._on_write_error: OnWriteError = on_write_error
        self._opened()

    def add(self, items: Sequence[Mapping[str, Any]], vectors: Any) -> None:
        """Add vectors, in memory until `save`. An item that is there already keeps its vector.

        Args:
            items: `n` items with `text`, `image`, `audio` or `video`.
            vectors: `(n, dim)` array or tensor, row i belongs to `items[i]`; kept as float32.

        Raises:
            InputError: An item has neither text nor image, audio or video, or there are not as
                many vectors as items.
            NonFiniteError: A vector holds NaN or infinity; nothing is added.
            CacheError: The vectors have another number of components than those in the table, or
                the table cannot be read.
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
            if key not in self._pending and self._find(key) < 0:
                self._pending[key] = (vector, _text(item))

    def get_vector(self, item: Mapping[str, Any]) -> Vector | None:
        """The vector of an item.

        Args:
            item: An item with `text`, `image`, `audio` or `video`.

        Returns:
            `(dim,) float32`, a copy; None if there is none. A row that fails its checksum is
            dropped with a warning, and None is returned, so that it is encoded again.

        Raises:
            InputError: The item has neither text nor image, audio or video.
            CacheError: The table cannot be read; or, with `on_write_error="raise"`, the item is
                missing, and the table cannot be written.
        """
        key = _key(item)
        self._opened()
        if key in self._pending:
            return self._pending[key][0].copy()
        for _ in range(2):
            position = self._find(key)
            if position < 0:
                self._try_writing()
                return None
            vector = self._read(position, key)
            if vector is not None:
                return vector
            self.load()  # damaged in the version that is open; it may have been mended since
        space = self._opened()
        logger.warning(
            "A row of %s fails its checksum (damaged on disk). It is dropped and encoded again.",
            space.location,
        )
        space.drop(key_bytes.from_bytes(key))
        self.load()
        return None

    def __contains__(self, item: Mapping[str, Any]) -> bool:
        key = _key(item)
        self._opened()
        return key in self._pending or self._find(key) >= 0

    def __len__(self) -> int:
        self._opened()
        first, _ = unique_keys(self._snapshot.keys())  # two processes may have saved one item
        return len(first) + sum(self._find(key) < 0 for key in self._pending)

    def save(self) -> None:
        """Commit what was added, in one transaction.

        Where the table cannot be written, what was added is kept in memory for the next `save`.

        Raises:
            CacheWriteError: It cannot be written, with `on_write_error="raise"`.
        """
        if not self._pending:
            return
        keys = key_bytes.from_bytes(b"".join(self._pending))
        vectors, texts = zip(*self._pending.values(), strict=True)
        try:
            # Those that another process saved first keep its vectors.
            self._opened().add(Rows(keys, np.stack(vectors), {"text": texts, "prompt": None}))
            self._pending.clear()
            self._told = False
        except CacheWriteError as error:
            self._refuse(error)
        finally:
            self.load()  # failed or not: rows may have moved

    def load(self) -> None:
        """Look for what other processes have saved to the table meanwhile.

        Raises:
            CacheError: The table cannot be read.
        """
        self._snapshot = self._opened().refresh_or_salvage(write=True)
        self._block = None
        self._last = -1

    def close(self) -> None:
        """Save what was added and close the table; any use after that opens it again.

        Raises:
            CacheError: The table cannot be written.
        """
        self.save()
        self._space = None

    def _opened(self) -> Space:
        if self._space is None:
            self._space = self._database.space(
                IDENTITY, "items", "unknown", store_text=self._store_text
            )
            self.load()
        return self._space

    def _try_writing(self) -> None:
        """Try a commit out at the first miss: after it, mteb's wrapper encodes, and then saves."""
        if self._tried:
            return
        try:
            self._opened().location.try_committing()
            self._tried = True
        except CacheWriteError as error:
            self._refuse(error)

    def _refuse(self, error: CacheWriteError) -> None:
        """Say once that nothing is written, until it is; or raise."""
        if self._on_write_error == "raise":
            raise error
        if not self._told:
            logger.warning(
                "%s cannot be written, and the run goes on: vectors are kept in memory, %d by now, "
                "until a save goes through. %s",
                self._opened().location,
                len(self._pending),
                error,
            )
        self._told = True

    def _find(self, key: bytes) -> int:
        """Position of the row that was first committed with a key; negative if there is none."""
        return self._snapshot.index.find_one(
            int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        )

    def _read(self, position: int, key: bytes) -> Vector | None:
        """The vector at a position, None if it is damaged.

        Where rows are asked for in the table's order, a block of them is read ahead.
        """
        start, block = self._block or (0, None)
        if block is None or not start <= position < start + len(block.keys):
            forward = 0 < position - self._last <= _BLOCK_ROWS
            reader = self._snapshot.reader
            assert reader is not None  # where a position is from
            # Not over a fragment's end: rows are not lost with the next one's file.
            end = int(reader.starts[np.searchsorted(reader.starts, position, side="right")])
            try:
                block = reader.read_range(
                    position, min(_BLOCK_ROWS, end - position) if forward else 1
                )
            except CacheError as error:
                if not is_damage(error):
                    raise
                self._opened().salvage(write=True, values=True)
                return None
            start = position
            self._block = (start, block)
        self._last = position
        row = position - start
        if block.damaged[row] or key_bytes.to_bytes(block.keys[row : row + 1]) != key:
            return None
        vector: Vector = block.values[row].copy()
        return vector

    def _check_dim(self, dim: int) -> None:
        known = next((len(vector) for vector, _ in self._pending.values()), self._snapshot.dim)
        if known not in (None, dim):
            raise CacheError(
                f"{self._opened().location} holds vectors of {known} components, and these have "
                f"{dim}: another model's? Use one path for each model."
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
    """The text of an item that consists of nothing else; None for other items."""
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
