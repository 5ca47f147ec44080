"""What somebody who watches a pipeline at work is told."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


class Watcher:
    """Told how encoding goes on; does nothing. Calls come from the thread that encodes."""

    def starting(self) -> None:
        """The engine is about to start, which takes a while."""

    def started(self) -> None:
        """The engine has started."""

    def encoded(self, items: int, tokens: int) -> None:
        """A chunk of so many items was encoded; tokens are 0 where they are not known."""

    def committed(self, items: int) -> None:
        """A chunk of so many items is on disk."""


class Bar(Watcher):
    """A progress bar over the distinct items of one call.

    Args:
        total: Distinct items.
        hits: How many of them are cached.
        unit: What is counted.
        verb: What is done with it.
        shown: Whether to draw it.
    """

    def __init__(self, total: int, hits: int, unit: str, verb: str, *, shown: bool) -> None:
        self._verb = verb
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
        """Say so."""
        self._bar.set_description("starting engine")

    def started(self) -> None:
        """Its time is no part of texts/s and time left."""
        self._bar.set_description(self._verb)
        self._bar.unpause()

    def encoded(self, items: int, tokens: int) -> None:
        """Go on by so many."""
        self._bar.update(items)
