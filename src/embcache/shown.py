"""Values in messages: as Python writes them, shortened."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 70


def shown(value: object) -> str:
    """A value in quotes; of a long text its beginning and its end: a text may be a book."""
    return _REPR.repr(value)
