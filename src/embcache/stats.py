"""Counts of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeStats:
    """What one `encode` or `predict` did.

    Attributes:
        texts: Texts (of a cross-encoder: pairs) that were asked for, duplicates included.
        unique: Distinct ones among them.
        hits: Distinct ones found in the cache.
        encoded: Distinct ones sent to the engine.
        seconds: Wall-clock seconds.
        unit: What is counted, "text" or "pair".
    """

    texts: int = 0
    unique: int = 0
    hits: int = 0
    encoded: int = 0
    seconds: float = 0.0
    unit: str = "text"

    def __add__(self, other: EncodeStats) -> EncodeStats:
        return EncodeStats(
            self.texts + other.texts,
            self.unique + other.unique,
            self.hits + other.hits,
            self.encoded + other.encoded,
            self.seconds + other.seconds,
            other.unit,
        )

    def __str__(self) -> str:
        return (
            f"{self.texts} {self.unit}s, {self.unique} unique, {self.hits} hits, "
            f"{self.encoded} encoded, {self.seconds:.2f} s"
        )
