"""What a warm would do, found out without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embcache.engine.base import CHARACTERS_A_TOKEN
from embcache.store import SpaceSnapshot
from embcache.store.index import KeyIndex, KeyParts, unique_keys
from embcache.warm.run import Warmer
from embcache.warm.sources import TextBatch

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

_ROW_OVERHEAD_BYTES = 60  # key, checksum, tokens, time, and Lance's own
_SAMPLE_ROWS = 2000


@dataclass(frozen=True)
class Plan:
    """What a warm would do.

    Attributes:
        texts: Texts read, duplicates included.
        unique: Distinct ones, each with its prompt.
        cached: Distinct ones that are cached.
        missing: Distinct ones that would be encoded.
        tokens: Of those, estimated.
        disk_bytes: What they would take, estimated; None where the vectors' size is not known.
        prompts: What would be put in front of how many of the texts read.
    """

    texts: int
    unique: int
    cached: int
    missing: int
    tokens: int
    disk_bytes: int | None
    prompts: dict[str, int]


def plan(warmer: Warmer, encoder: VllmEncoderWrapper, batches: Iterable[TextBatch]) -> Plan:
    """Read and hash a stream, and look it up.

    Memory: 24 bytes for each distinct text, and for each key that the space holds.

    Raises:
        CacheError: The cache cannot be read.
    """
    pipeline = encoder.open_pipeline()
    snapshot = SpaceSnapshot() if pipeline.space is None else pipeline.space.refresh()
    seen = KeyParts()
    texts = unique = cached = characters = 0
    prompts: Counter[str] = Counter()
    for window in warmer.windows(batches):
        texts += len(window.keys)
        first, _ = unique_keys(window.keys)
        first = first[seen.find(window.keys[first]) < 0]
        unique += len(first)
        new = KeyIndex.build(window.keys[first], np.arange(len(first), dtype=np.uint64))
        seen = seen.extended(new)
        there = snapshot.find(window.keys[first]) >= 0
        cached += int(there.sum())
        request = window.request
        prompts[request.prompt] += len(window.keys)
        characters += sum(
            len(request.prompt) + len(request.texts[row]) for row in first[~there].tolist()
        )
    missing = unique - cached
    width = None if snapshot.dim is None else 4 * snapshot.dim
    disk = None if width is None else missing * (width + _ROW_OVERHEAD_BYTES) + characters
    tokens = round(characters / _characters_a_token(snapshot))
    return Plan(texts, unique, cached, missing, tokens, disk, dict(prompts.most_common()))


def _characters_a_token(snapshot: SpaceSnapshot) -> float:
    """As in the first rows of the space, if there are any."""
    if not {"text", "prompt", "n_tokens"} <= set(snapshot.columns):
        return CHARACTERS_A_TOKEN
    characters = tokens = rows = 0
    for batch in snapshot.scan(["text", "prompt", "n_tokens"]):
        for row in batch.select(["text", "prompt", "n_tokens"]).to_pylist():
            if row["text"] is not None and row["n_tokens"]:
                characters += len(row["text"]) + len(row["prompt"] or "")
                tokens += row["n_tokens"]
        rows += batch.num_rows
        if rows >= _SAMPLE_ROWS:
            break
    return characters / tokens if characters and tokens else CHARACTERS_A_TOKEN
