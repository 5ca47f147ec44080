"""Values in messages: as Python writes them, shortened."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 70


def shown(value: object) -> str:
    """A value in quotes; of a long text its beginning and its end: a text may be a book."""
    return _REPR.repr(value)


def quoted(text: str, limit: int = 60) -> str:
    """A prompt in quotes, shortened: whether it ends in a space matters."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}")
