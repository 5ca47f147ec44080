"""JSON from someone else's cache: read within bounds, or refused in words.

`json.loads` takes more than JSON: NaN and infinity, a name twice (the last one counts), numbers
that become infinite; and text that is nested deeply ends in a RecursionError. None of that is in
what embcache writes, and each of it could make two different texts mean one identity.
"""

from __future__ import annotations

import json
import math
from typing import Any

MOST_BYTES = 2**20
"""Of an identity; what is written has some hundred, and some thousand with many overrides."""

MOST_NESTED = 64
"""Levels of lists and objects: far less than what Python's own recursion allows."""


class StrictJsonError(ValueError):
    """A text is not JSON within the bounds; the message says in what, to follow "it "."""


def read_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        text: The JSON; bytes are UTF-8.

    Returns:
        Its members. All numbers in it are finite, and no name is there twice, at any level.

    Raises:
        StrictJsonError: It is something else, too large, or nested too deeply. Size and nesting
            are looked at before anything is parsed.
    """
    if len(text) > MOST_BYTES:
        raise StrictJsonError(f"is {len(text):,} long, and at most {MOST_BYTES:,} are read")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        if (depth := _depth(decoded)) > MOST_NESTED:
            raise StrictJsonError(f"is nested {depth:,} levels deep, and {MOST_NESTED} are read")
        value = json.loads(
            decoded,
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except StrictJsonError:
        raise
    except ValueError as error:  # of UTF-8, of JSON, of integers with thousands of digits
        raise StrictJsonError(f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise StrictJsonError(f"is a {type(value).__name__}, not an object")
    return value


def _depth(text: str) -> int:
    """How deeply lists and objects are nested, those that are never closed included."""
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise StrictJsonError(f"has the name {twice[:60]!r} twice")
    return members


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise StrictJsonError(f"has a number that is not finite: {digits[:60]}")
    return number


def _no_constant(name: str) -> Any:
    raise StrictJsonError(f"has {name}, which is no JSON")
