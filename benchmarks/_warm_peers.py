"""Contenders of the parts `warm`, `warm-large` and `tenth`: everything is cached.

Each is given the same DataLoader of texts, and returns one `(n, dim) float32` matrix, which is
compared with what its cache was filled with. What opens the cache belongs to the call that is
timed; imports do not. Functions `fill_...` fill the caches of those that `_fill` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
from _inputs import (
    DTYPE,
    Vectors,
    check_equal,
    model_path,
    raw_texts,
    saved_dataset,
    saved_loader,
    saved_vectors,
    task,
)
from _setup import Contender, Setup, nothing, once


def embcache(setup: Setup) -> Contender:
    """`VllmEncoderWrapper` over the full cache; it may not start an engine."""
    from embcache import VllmEncoderWrapper

    loader, arguments = saved_loader(setup), task()
    encoder = VllmEncoderWrapper(
        model_path(), dtype=DTYPE, cache_path=setup.folder / "embcache", on_miss="raise"
    )
    return _warm(setup, lambda: encoder.encode(loader, **arguments, show_progress_bar=False))


# ---- the floor -----------------------------------------------------------------------------------


def fill_floor(setup: Setup) -> Contender:
    """Sort the hashes of all texts, and note in which row each one's vector is."""

    def fill() -> None:
        heads = _heads(saved_dataset(setup))
        order = np.argsort(heads)
        np.save(setup.folder / "floor-heads.npy", heads[order])
        np.save(setup.folder / "floor-rows.npy", order)

    return once(fill, nothing)


def floor(setup: Setup) -> Contender:
    """Hash every text, and gather rows out of a mapped matrix by a prepared index.

    This is the floor because no cache that is keyed by text can leave out any of it: it has to read
    each text once to know which it is, to find where its vector lies, and to copy that into the
    caller's matrix. It does nothing else: no row is verified, a hash that is not there would go
    unnoticed, and nothing could be added. The hash is xxh3, at memory's speed; the texts are hashed
    where they lie in Arrow's buffers; rows come out of the page cache without a copy between.
    """
    loader, folder = saved_loader(setup), setup.folder

    def gather() -> Vectors:
        names = ("floor-heads", "floor-rows", "texts")
        heads, rows, matrix = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)
        found: Vectors = matrix[rows[np.searchsorted(heads, _heads(loader.dataset))]]
        return found

    return _warm(setup, gather)


def _heads(dataset: Any) -> Any:
    """The first eight bytes of each text's xxh3_128, `(n,) uint64`, out of the Arrow column."""
    hashed = b"".join(_keys(dataset))
    return np.frombuffer(hashed, np.uint64)[::2].copy()


# ---- LMDB ----------------------------------------------------------------------------------------

_MAP_BYTES = 2**36  # the most that a database may grow to; nothing is reserved


def fill_lmdb(setup: Setup) -> Contender:
    """Put all vectors into an LMDB database, sorted by key, in one transaction."""

    def fill() -> None:
        keys = _keys(saved_dataset(setup))
        vectors = np.load(setup.folder / "texts.npy", mmap_mode="r")
        with _lmdb(setup, readonly=False) as database, database.begin(write=True) as transaction:
            items = ((keys[row], vectors[row].tobytes()) for row in np.argsort(keys))
            transaction.cursor().putmulti(items, append=True)

    return once(fill, nothing)


def lmdb(setup: Setup) -> Contender:
    """LMDB at its best: all keys in one read transaction, and no copy of a value but the last.

    It hashes as the floor does. No row is verified: LMDB keeps no checksums. Tried: `getmulti` of a
    cursor takes 1.6 times as long with `buffers=True`, and as long as this without; asking in the
    order of the keys 1.1 to 1.5 times; `readahead=False` changes nothing.
    """
    import lmdb  # noqa: F401  imports are not timed

    loader, dim = saved_loader(setup), setup.dim

    def get() -> Vectors:
        with _lmdb(setup, readonly=True) as database, database.begin(buffers=True) as transaction:
            joined = bytearray().join(map(transaction.get, _keys(loader.dataset)))
            return np.frombuffer(joined, np.float32).reshape(-1, dim)

    return _warm(setup, get)


def _lmdb(setup: Setup, *, readonly: bool) -> Any:
    import lmdb

    return lmdb.open(
        str(setup.folder / "lmdb"),
        map_size=_MAP_BYTES,
        readonly=readonly,
        lock=not readonly,
        sync=False,
    )


def _keys(dataset: Any) -> list[bytes]:
    return list(map(xxhash.xxh3_128_digest, raw_texts(dataset.data.table)))


# ---- mteb's own cache ----------------------------------------------------------------------------


def mteb_numpy(setup: Setup) -> Contender:
    """CachedEmbeddingWrapper with NumpyCache; its model fails if it is called."""
    from mteb.models.cache_wrappers.cache_backends.numpy_cache import NumpyCache

    return _mteb(setup, "mteb-numpy", NumpyCache)


def mteb_faiss(setup: Setup) -> Contender:
    """CachedEmbeddingWrapper with FaissCache; its model fails if it is called."""
    import faiss  # noqa: F401  imports are not timed
    from mteb.models.cache_wrappers.cache_backends.faiss_cache import FaissCache

    return _mteb(setup, "mteb-faiss", FaissCache)


def _mteb(setup: Setup, name: str, backend: Any) -> Contender:
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    class MustNotBeCalled:
        mteb_model_meta = None

        def encode(self, inputs: Any, **kwargs: Any) -> Vectors:
            raise RuntimeError("CachedEmbeddingWrapper asked the model for cached texts")

    loader, arguments = saved_loader(setup), task()
    model: Any = MustNotBeCalled()
    cached = CachedEmbeddingWrapper(model, setup.folder / name, backend)
    return _warm(setup, lambda: cached.encode(loader, **arguments, show_progress_bar=False))


# ---- LangChain -----------------------------------------------------------------------------------


def fill_langchain(setup: Setup) -> Contender:
    """Fill the folder of LangChain's LocalFileStore, one file a text."""

    def fill() -> None:
        vectors = np.load(setup.folder / "texts.npy").tolist()
        _langchain(setup, lambda texts: vectors).embed_documents(saved_dataset(setup)["text"][:])

    return once(fill, nothing)


def langchain(setup: Setup) -> Contender:
    """CacheBackedEmbeddings over LocalFileStore, as its documentation sets it up.

    Keys are xxh3_128, which is faster than all that it has by itself. `batch_size` counts misses
    only: all files are read in one call whatever it is.
    """
    loader = saved_loader(setup)

    def fail(texts: list[str]) -> list[list[float]]:
        raise RuntimeError("CacheBackedEmbeddings asked the model for cached texts")

    cached = _langchain(setup, fail)

    def embed() -> Vectors:
        return np.array(cached.embed_documents(loader.dataset["text"][:]), dtype=np.float32)

    return _warm(setup, embed)


def _langchain(setup: Setup, embed: Callable[[list[str]], list[list[float]]]) -> Any:
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_classic.storage import LocalFileStore
    from langchain_core.embeddings import Embeddings

    class Model(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return embed(texts)

        def embed_query(self, text: str) -> list[float]:
            return embed([text])[0]

    return CacheBackedEmbeddings.from_bytes_store(
        Model(),
        LocalFileStore(setup.folder / "langchain"),
        key_encoder=lambda text: xxhash.xxh3_128_hexdigest(text.encode()),
    )


def _warm(setup: Setup, call: Callable[[], Any]) -> Contender:
    return once(call, lambda found: check_equal(found, saved_vectors(setup)))
