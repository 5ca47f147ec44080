"""What a warm run would do, found out without encoding anything."""

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
    """What a warm run would do.

    Attributes:
        texts: Texts read, duplicates included.
        unique: Distinct pairs of prompt and text among them.
        cached: How many of these are cached.
        missing: How many of these would be encoded.
        tokens: Tokens of those that would be encoded, estimated.
        disk_bytes: Bytes that those would take on disk, estimated; None as long as the space has
            no rows that tell the vectors' size.
        prompts: Each prompt, and how many of the texts read it would be put in front of, the most
            frequent first.
    """

    texts: int
    unique: int
    cached: int
    missing: int
    tokens: int
    disk_bytes: int | None
    prompts: dict[str, int]


def plan(warmer: Warmer, encoder: VllmEncoderWrapper, batches: Iterable[TextBatch]) -> Plan:
    """Read and hash a stream, and look its texts up; nothing is encoded or written.

    It takes 24 bytes of memory for each distinct text, and for each key that the space holds.

    Args:
        warmer: Reads and hashes; one for the same encoder.
        encoder: The encoder whose space would be filled.
        batches: The stream; it is read to its end.

    Returns:
        What `warmer.run` would do with the same stream.

    Raises:
        CacheError: The cache cannot be read.
        ConfigError: The encoder makes prompts of tasks and a text is of none; a source lacks a
            column; or the encoder's dtype is "auto" and ambiguous.
        InputError: A source cannot be read, or a text has no UTF-8 form.
        EngineError: The encoder's dtype is "auto" and vLLM cannot say what that means.
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
    """Characters in a token, as in the first rows of the space if it has any, else a guess."""
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
