"""A dry run: what a warm would do, counted and estimated without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embcache.engine.base import BYTES_A_TOKEN
from embcache.errors import ConfigError
from embcache.store import SpaceSnapshot
from embcache.store.index import KeyIndex, KeyParts, unique_keys
from embcache.warm.run import Warmer, Window
from embcache.warm.sources import TextBatch

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
    from embcache.engine.local_tokenizer import LocalTokenizer

_ROW_OVERHEAD_BYTES = 60  # key, checksum, tokens, time, and Lance's own
_SAMPLE_ROWS = 2000
# Token counts of texts vary about as much as their mean, so 1,000 give it within some 3 %.
_SAMPLE_TEXTS = 1000
# Of a text as long as a book, so much is kept: a sample takes 64 MB at most. Its share of the whole
# is made up for.
_SAMPLE_CHARACTERS = 2**14


@dataclass(frozen=True)
class Plan:
    """What a warm run would do.

    Attributes:
        texts: Texts read, duplicates included.
        unique: Distinct pairs of prompt and text among them.
        cached: How many of these are cached.
        missing: How many of these would be encoded; those that the engine would refuse included.
        tokens: Tokens of those that would be encoded, estimated.
        tokens_from: How: in words for people.
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
    tokens_from: str
    disk_bytes: int | None
    prompts: dict[str, int]


class Sample:
    """A random sample of a stream of texts, each with the same chance (Vitter's algorithm R).

    Args:
        size: How many texts are kept at most.

    Attributes:
        texts: The texts that are kept, their beginnings if they are long.
        lengths: Characters of each of these, uncut.
        seen: How many texts there were.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(0)  # the same plan for the same stream
        self.texts: list[str] = []
        self.lengths: list[int] = []
        self.seen = 0

    def add(self, texts: Sequence[str]) -> None:
        """Let the next texts of the stream have their chance."""
        numbers = np.arange(self.seen, self.seen + len(texts))
        places = np.where(numbers < self._size, numbers, self._random.integers(0, numbers + 1))
        self.seen += len(texts)
        for i in np.flatnonzero(places < self._size).tolist():
            text, place = texts[i], slice(int(places[i]), int(places[i]) + 1)
            self.texts[place] = [text[:_SAMPLE_CHARACTERS]]
            self.lengths[place] = [len(text)]


def plan(warmer: Warmer, encoder: VllmEncoderWrapper, batches: Iterable[TextBatch]) -> Plan:
    """Read and hash a stream, and look its texts up; nothing is encoded or written.

    It takes 24 bytes of memory for each distinct text, and for each key that the space holds.

    Tokens are counted with the model's tokenizer, where it is on this machine, in a sample of the
    texts that are missing. Else they are guessed from the texts' sizes.

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
        InputError: A source cannot be read.
        EngineError: The encoder's dtype is "auto" and vLLM cannot say what that means.
    """
    pipeline = encoder.open_pipeline()
    snapshot = SpaceSnapshot() if pipeline.space is None else pipeline.space.refresh()
    seen = KeyParts()
    sample = Sample(_SAMPLE_TEXTS)
    texts = unique = cached = size = 0
    prompts: Counter[str] = Counter()
    for window in warmer.windows(batches):
        warmer.leave_out(window.bad)
        texts += len(window.keys)
        first, _ = unique_keys(window.keys)
        first = first[seen.find(window.keys[first]) < 0]
        unique += len(first)
        new = KeyIndex.build(window.keys[first], np.arange(len(first), dtype=np.uint64))
        seen = seen.extended(new)
        there = snapshot.find(window.keys[first]) >= 0
        cached += int(there.sum())
        prompts[window.request.prompt] += len(window.keys)
        missing = _inputs(window, first[~there].tolist())
        size += sum(len(text.encode()) for text in missing)
        sample.add(missing)
    tokens, how = _tokens(encoder, sample, size, snapshot)
    disk = None if snapshot.dim is None else sample.seen * (4 * snapshot.dim + _ROW_OVERHEAD_BYTES)
    if disk is not None and "text" in snapshot.columns:
        disk += size
    return Plan(
        texts, unique, cached, unique - cached, tokens, how, disk, dict(prompts.most_common())
    )


def _inputs(window: Window, rows: Sequence[int]) -> list[str]:
    """What the engine would get for some texts: prompt + text."""
    inputs: list[str] = window.request.inputs(rows)
    return inputs


def _tokens(
    encoder: VllmEncoderWrapper, sample: Sample, size: int, snapshot: SpaceSnapshot
) -> tuple[int, str]:
    """Tokens of all missing texts, of so many bytes together; and how that was found out."""
    if not sample.seen:
        return 0, "nothing to count"
    try:
        tokenizer = encoder.local_tokenizer()
        counted = _counted(tokenizer, sample)
    except ConfigError as error:
        tokens, how = size / BYTES_A_TOKEN, f"{BYTES_A_TOKEN} bytes a token"
        if known := _bytes_a_token(snapshot):
            tokens, how = size / known, f"{known:.1f} bytes a token, as in the rows that are cached"
        return round(tokens), f"a guess, {how}: {error}"
    how = "with the model's tokenizer"
    if sample.seen > len(sample.texts):
        how += f", in {len(sample.texts):,} of the texts"
    return round(float(counted.mean()) * sample.seen), how


def _counted(tokenizer: LocalTokenizer, sample: Sample) -> npt.NDArray[np.float64]:
    """Tokens of each text of a sample, as many as the engine would see."""
    shown = np.fromiter(map(len, sample.texts), np.float64)
    whole = np.array(sample.lengths, np.float64)
    counted = tokenizer.count(sample.texts) * (whole / np.maximum(shown, 1))
    return np.asarray(np.minimum(counted, tokenizer.limit or np.inf))


def _bytes_a_token(snapshot: SpaceSnapshot) -> float | None:
    """As in the first rows of the space; None if it has none that tell."""
    if not {"text", "prompt", "n_tokens"} <= set(snapshot.columns):
        return None
    size = tokens = rows = 0
    for batch in snapshot.scan(["text", "prompt", "n_tokens"]):
        for row in batch.select(["text", "prompt", "n_tokens"]).to_pylist():
            if row["text"] is not None and row["n_tokens"]:
                size += len(row["text"].encode()) + len((row["prompt"] or "").encode())
                tokens += row["n_tokens"]
        rows += batch.num_rows
        if rows >= _SAMPLE_ROWS:
            break
    return size / tokens if size and tokens else None
