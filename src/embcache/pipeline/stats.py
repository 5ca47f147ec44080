"""What a run did, in numbers, and who is told while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm


@dataclass(frozen=True)
class EncodeStats:
    """What one `encode` or `predict` did.

    Attributes:
        texts: Texts (of a cross-encoder: pairs) that were asked for, duplicates included.
        unique: Distinct ones among them.
        hits: Distinct ones that were not sent to the engine: found in the cache, or upstream.
        encoded: Distinct ones sent to the engine.
        seconds: Wall-clock seconds of the call.
        unit: What is counted, "text" or "pair".
        refused: Distinct ones that the engine refused and that were left out; only a warm does so.
        unwritten: How many of those that were encoded, or found upstream, are not in the cache,
            because writing failed.
        upstream: How many of the hits were found upstream, and not in the cache itself.
        requests: How many requests an object store was sent, for a cache or an upstream that lies
            in one.
        bytes: What these brought and took, in bytes.
    """

    texts: int = 0
    unique: int = 0
    hits: int = 0
    encoded: int = 0
    seconds: float = 0.0
    unit: str = "text"
    refused: int = 0
    unwritten: int = 0
    upstream: int = 0
    requests: int = 0
    bytes: int = 0

    def __add__(self, other: EncodeStats) -> EncodeStats:
        return EncodeStats(
            self.texts + other.texts,
            self.unique + other.unique,
            self.hits + other.hits,
            self.encoded + other.encoded,
            self.seconds + other.seconds,
            other.unit,
            self.refused + other.refused,
            self.unwritten + other.unwritten,
            self.upstream + other.upstream,
            self.requests + other.requests,
            self.bytes + other.bytes,
        )

    def __str__(self) -> str:
        return (
            f"{self.texts} {self.unit}s, {self.unique} unique, {self.hits} hits"
            + (f" ({self.upstream} of them upstream)" if self.upstream else "")
            + f", {self.encoded} encoded, {self.seconds:.2f} s"
            + (f", {self.unwritten} not written" if self.unwritten else "")
            + (f", {self.requests} requests, {self.bytes / 1e6:.1f} MB" if self.requests else "")
        )


class Watcher:
    """Is told how encoding goes on; this one does nothing with it, subclasses do.

    All calls come from the thread that encodes.
    """

    def starting(self) -> None:
        """The engine is about to start, which takes a while."""

    def started(self) -> None:
        """The engine has started."""

    def found(self, items: int) -> None:
        """Some of what was missing was found upstream.

        Args:
            items: How many items.
        """

    def encoded(self, items: int, tokens: int) -> None:
        """A chunk was encoded.

        Args:
            items: How many items are in it.
            tokens: How many tokens they have together; 0 where that is not known.
        """

    def committed(self, items: int) -> None:
        """A chunk is on disk.

        Args:
            items: How many items are in it.
        """


class Bar(Watcher):
    """A progress bar over the distinct items of one call; for the methods see `Watcher`.

    Args:
        total: How many distinct items there are.
        hits: How many of them are cached; the bar begins there.
        unit: What is counted, "text" or "pair".
        verb: What is done with the items, in front of the bar.
        shown: Whether to draw the bar; it is not drawn for no items either.
    """

    def __init__(self, total: int, hits: int, unit: str, verb: str, *, shown: bool) -> None:
        self._verb = verb
        self._hits = hits
        self._bar: tqdm[Any] = tqdm(
            total=total,
            initial=hits,  # texts/s and time left are about what is encoded
            unit=unit,
            desc=verb,
            postfix={"hits": hits},
            disable=not shown or not total,
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def starting(self) -> None:
        """Say that the engine is starting, in front of the bar."""
        self._bar.set_description("starting engine")

    def started(self) -> None:
        """Go on with the bar; the engine's start counts neither for texts/s nor for time left."""
        self._bar.set_description(self._verb)
        self._bar.unpause()

    def found(self, items: int) -> None:
        """Count so many items as hits, which count neither for texts/s nor for time left."""
        self._hits += items
        if not self._bar.disable:
            self._bar.initial += items
            self._bar.update(items)
            self._bar.set_postfix(hits=self._hits)

    def encoded(self, items: int, tokens: int) -> None:
        """Move the bar on by so many items; tokens are not shown."""
        self._bar.update(items)
