"""What `storm.py` and `soak.py` share: texts by number, vectors that can be computed again.

The engine is a stand-in, so that every vector that a cache hands out can be compared with the one
that is right, to the last bit, and so that the time goes into the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import numpy.typing as npt

from embcache.encoders.vllm_encoder import VllmEncoderWrapper
from embcache.engine.base import Embedded, Prepared

# Made here and not in `encode`: a fork server then does it once, and it takes seconds.
TASK = mteb.get_task("STS13").metadata
DIM = 32
CHUNK_TEXTS = 100
_TOKENS_A_TEXT = 20  # 4 of the text, and what a text costs beside them in `pipeline.chunks`
_ENDINGS = ("", " naïve café", " 東京の天気", "\nsecond line\twith a tab", " ".join(["long"] * 300))


class WrongVectorError(Exception):
    """A cache returned a vector that is not its text's."""


def text_of(number: int) -> str:
    """A text that no other number has; some are long, some have several lines."""
    return f"text {number}{_ENDINGS[number % len(_ENDINGS)]}"


def vector_of(text: str) -> npt.NDArray[np.float32]:
    """The one right vector of a text, `(DIM,) float32`."""
    digest = hashlib.shake_256(text.encode()).digest(4 * DIM)
    return (np.frombuffer(digest, "<u4").astype(np.float64) / 2**31 - 1).astype(np.float32)


class KnownEngine:
    """An engine that computes `vector_of`; see `embcache.engine.base.Engine`."""

    version = "known 1"
    dtype = "float32"
    batch_size = 128

    def __init__(self, *_: Any) -> None:
        self.started = False

    def start(self) -> None:
        """Be started."""
        self.started = True

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Take the texts as prompts; all are said to be equally long."""
        return Prepared(list(texts), np.full(len(texts), 4, np.int64))

    def embed(self, prompts: Sequence[str]) -> Embedded:
        """The right vectors, `(n, DIM) float32`."""
        return Embedded(np.stack([vector_of(text) for text in prompts]))

    def close(self) -> None:
        """Be started no more."""
        self.started = False


def make_model(folder: Path, name: str = "model") -> Path:
    """The folder of a model that has an identity and that no engine could load.

    Args:
        folder: Where it is made, if it is not there.
        name: Of the folder; models with other names have other identities.
    """
    model = folder / name
    model.mkdir(parents=True, exist_ok=True)
    config = "{}" if name == "model" else json.dumps({"name": name})
    (model / "config.json").write_text(config, encoding="utf-8")
    return model


def open_encoder(model: Path, cache: Path | str, **arguments: Any) -> VllmEncoderWrapper:
    """The encoder as users make it, with the stand-in as its engine and small chunks.

    Args:
        model: Made by `make_model`.
        cache: Directory of the cache, or its URL.
        **arguments: Further arguments of `VllmEncoderWrapper`.
    """
    encoder = VllmEncoderWrapper(
        str(model), dtype="float32", cache_path=cache, make_engine=KnownEngine, **arguments
    )
    chunker = encoder.open_pipeline().chunker
    chunker.tokens, chunker.adapts = CHUNK_TEXTS * _TOKENS_A_TEXT, False
    return encoder


def encode(encoder: VllmEncoderWrapper, texts: Sequence[str]) -> None:
    """Have texts encoded, and compare every vector with the right one.

    Raises:
        WrongVectorError: A vector differs in a bit.
    """
    batches: Any = [{"text": list(texts)}]  # a DataLoader has more that is not needed here
    vectors = encoder.encode(
        batches,
        task_metadata=TASK,
        hf_split="test",
        hf_subset="default",
        show_progress_bar=False,
    )
    check_vectors(texts, np.asarray(vectors))


def check_vectors(texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """Compare vectors with the right ones.

    Raises:
        WrongVectorError: One differs in a bit, or there are not as many as texts.
    """
    if vectors.shape != (len(texts), DIM):
        raise WrongVectorError(f"shape {vectors.shape} for {len(texts)} texts")
    for row, text in enumerate(texts):
        if vectors[row].tobytes() != vector_of(text).tobytes():
            raise WrongVectorError(f"row {row}, {text[:60]!r}: not its vector")


def table_row(cells: Iterable[object]) -> str:
    """A row of the table in docs/reliability.md."""
    return f"| {' | '.join(map(str, cells))} |"
