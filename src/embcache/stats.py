"""Counts of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeStats:
    """What one `encode` did.

    Attributes:
        texts: Texts that were asked for, duplicates included.
        unique: Distinct texts among them.
        hits: Distinct texts found in the cache.
        encoded: Distinct texts sent to the engine.
        seconds: Wall-clock seconds.
    """

    texts: int = 0
    unique: int = 0
    hits: int = 0
    encoded: int = 0
    seconds: float = 0.0

    def __add__(self, other: EncodeStats) -> EncodeStats:
        return EncodeStats(
            self.texts + other.texts,
            self.unique + other.unique,
            self.hits + other.hits,
            self.encoded + other.encoded,
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        return (
            f"{self.texts} texts, {self.unique} unique, {self.hits} hits, "
            f"{self.encoded} encoded, {self.seconds:.2f} s"
        )
