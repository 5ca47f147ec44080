"""Fills the caches of all contenders with the same texts and vectors; no engine computes anything.

Each function is a contender (see `_contender`) whose only call does the filling, so that it happens
in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _inputs import (
    DTYPE,
    Vectors,
    fresh_texts,
    make_vectors,
    model_path,
    saved_loader,
    stored_texts,
    task,
)
from _setup import Contender, Setup, nothing, once

# What a first run on CPU commits at a time, about. A large cache is filled by larger commits, as a
# GPU makes them.
CHUNK_TEXTS = 512
MOST_COMMITS = 100


def texts_and_vectors(setup: Setup) -> Contender:
    """Leave the texts, the vectors and embcache's full cache; and a random tenth of both."""

    def fill() -> None:
        texts, vectors = stored_texts(setup.texts), make_vectors(setup.texts, setup.dim)
        _leave(setup.folder, "texts", texts, vectors)
        rows = np.random.default_rng(1).permutation(len(texts))[: len(texts) // 10]
        _leave(setup.folder, "tenth", [texts[row] for row in rows], vectors[rows])
        fill_embcache(setup.folder / "embcache", texts, vectors)

    return once(fill, nothing)


def few(setup: Setup) -> Contender:
    """The same with the fresh texts of a batch, of part `start`."""

    def fill() -> None:
        texts = fresh_texts(setup.batches[0], 0, 0)
        vectors = make_vectors(len(texts), setup.dim)
        _leave(setup.folder, "texts", texts, vectors)
        fill_embcache(setup.folder / "embcache", texts, vectors)

    return once(fill, nothing)


def mteb_numpy(setup: Setup) -> Contender:
    """The cache of mteb's CachedEmbeddingWrapper with NumpyCache."""
    from mteb.models.cache_wrappers.cache_backends.numpy_cache import NumpyCache

    return once(lambda: _fill_mteb(setup, "mteb-numpy", NumpyCache), nothing)


def mteb_faiss(setup: Setup) -> Contender:
    """The cache of mteb's CachedEmbeddingWrapper with FaissCache."""
    from mteb.models.cache_wrappers.cache_backends.faiss_cache import FaissCache

    return once(lambda: _fill_mteb(setup, "mteb-faiss", FaissCache), nothing)


def fill_embcache(path: Path, texts: list[str], vectors: Vectors) -> None:
    """Leave a cache of embcache that holds a vector for each text.

    Args:
        path: Folder of the cache.
        texts: `n` texts.
        vectors: `(n, dim) float32`, row i belongs to `texts[i]`.
    """
    from embcache import VllmEncoderWrapper
    from embcache.identity.dtype import vllm_version
    from embcache.identity.keys import text_keys
    from embcache.store import Database, Rows

    identity = VllmEncoderWrapper(model_path(), dtype=DTYPE, cache_path=path).identity
    space = Database(path, writable=True).space(
        identity, model_path(), vllm_version() or "none", store_text=True
    )
    keys = text_keys(identity.to_bytes(), "", texts)
    lengths = np.array([text.count(" ") + 3 for text in texts], np.int32)  # with [CLS] and [SEP]
    longest_first = np.argsort(-lengths, kind="stable")  # as the pipeline sends them
    chunk = max(CHUNK_TEXTS, len(texts) // MOST_COMMITS)
    for start in range(0, len(texts), chunk):
        rows = longest_first[start : start + chunk]
        columns = {"text": [texts[row] for row in rows], "prompt": "", "task": "NFCorpus"}
        space.add(Rows(keys[rows], vectors[rows], columns, lengths[rows]))
    space.keep_index()  # as each run does at its end


def _leave(folder: Path, name: str, texts: list[str], vectors: Vectors) -> None:
    from datasets import Dataset

    np.save(folder / f"{name}.npy", vectors)
    Dataset.from_dict({"text": texts}).save_to_disk(str(folder / name))


def _fill_mteb(setup: Setup, name: str, backend: Any) -> None:
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    class Known:
        mteb_model_meta = None

        def encode(self, inputs: Any, **kwargs: Any) -> Vectors:
            vectors: Vectors = np.load(setup.folder / "texts.npy")
            return vectors

    known: Any = Known()
    cached = CachedEmbeddingWrapper(known, setup.folder / name, backend)
    cached.encode(saved_loader(setup), **task(), show_progress_bar=False)
