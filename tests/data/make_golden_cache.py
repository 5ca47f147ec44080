"""Writes a cache of format 1 with one space of each kind, as tests/data/golden-v1 holds it.

That folder was written once, by the first embcache of format 1, and is never written again: every
later version must open, check and read it. This script is how it came about, and makes the like:

    python -m tests.data.make_golden_cache FOLDER

Values are formulas, so that a test needs no second copy of them. The model is a directory with
MODEL_FILES, whose identity is a hash of their content.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from embcache import CachedEncoder
from embcache.encoders.lance_cache import LanceCache
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Rows

MODEL_FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"golden weights"}
REVISION = "2a1f8139acdfc317323e5257162afb14"  # the hash over them
PROMPT = "query: "
TEXTS = ["a", "Grüße", "naïve café, 東京", "two\nlines", "long " * 60, "", " blank "]
PAIRS = [("a query", "a document"), ("a query", "another"), ("ä", "ö")]
PREFIXES = ("q: ", "d: ")
DIM = 6

ENCODER = Identity("local", REVISION, "float32")
UNTEXTED = Identity("local", REVISION, "bfloat16", {"max_model_len": 128})
RERANKER = Identity(
    "local",
    REVISION,
    "float32",
    {"convert": "classify"},
    prompt_handling="score(query_prefix + query, document_prefix + document)",
)


def vector(text: str) -> np.ndarray:
    """`(6,) float32`."""
    number = np.float32(TEXTS.index(text) + 1)
    return (np.arange(DIM, dtype=np.float32) - np.float32(2.5)) * number / np.float32(7)


def score(pair: tuple[str, str]) -> np.float32:
    """Of a query and a document."""
    return np.float32(PAIRS.index(pair) + 1) / np.float32(3)


class GoldenModel(AbsEncoder):
    """An encoder whose prompts embcache cannot know."""

    def __init__(self) -> None:
        overwrites = {"name": "golden/model", "revision": "1"}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=overwrites)

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        return np.stack([vector(text) for batch in inputs for text in batch["text"]])


def write(folder: Path) -> None:
    """Make the cache, and beside it, in `items`, one of `LanceCache`."""
    database = Database(folder / "cache", writable=True)
    space = database.space(ENCODER, "golden", "vllm 0.32.0")
    for texts in (TEXTS[:4], TEXTS[4:]):  # two commits: two fragments
        space.add(_rows(ENCODER, texts))
    space.add(_rows(ENCODER, ["deleted"], np.ones((1, DIM), np.float32)))
    space.drop(text_keys(ENCODER.to_bytes(), PROMPT, ["deleted"]))
    untexted = database.space(UNTEXTED, "golden", "vllm 0.32.0", store_text=False)
    untexted.add(_rows(UNTEXTED, TEXTS))
    scores = database.space(RERANKER, "golden", "vllm 0.32.0", layout=SCORES)
    queries, documents = map(list, zip(*PAIRS, strict=True))
    columns = {
        "query": queries,
        "document": documents,
        "query_prefix": PREFIXES[0],
        "document_prefix": PREFIXES[1],
        "task": "Task",
    }
    keys = pair_keys(RERANKER.to_bytes(), PREFIXES, queries, documents)
    values = np.array([[score(pair)] for pair in PAIRS], np.float32)
    scores.add(Rows(keys, values, columns, np.arange(3, dtype=np.int32)))
    _encode(CachedEncoder(GoldenModel(), folder / "cache"))
    items = LanceCache(folder / "items")
    items.add([{"text": text} for text in TEXTS], np.stack([vector(text) for text in TEXTS]))
    items.save()


def _rows(identity: Identity, texts: list[str], vectors: np.ndarray | None = None) -> Rows:
    values = np.stack([vector(text) for text in texts]) if vectors is None else vectors
    columns = {"text": texts, "prompt": PROMPT, "prompt_type": "query", "task": "Task"}
    n_tokens = np.arange(len(texts), dtype=np.int32)
    return Rows(text_keys(identity.to_bytes(), PROMPT, texts), values, columns, n_tokens)


def _encode(encoder: CachedEncoder) -> None:
    from tests.conftest import encode

    encode(encoder, TEXTS)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
