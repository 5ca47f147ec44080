"""Errors about items of a request, which name the caller's rows."""

from __future__ import annotations

from collections.abc import Mapping

from embcache.errors import CacheError, MissingTextsError, NonFiniteError, RefusedTextsError
from embcache.identity.identity import DTYPES
from embcache.pipeline.request import Request
from embcache.store import Space
from embcache.store.index import Positions

_SHOWN_ROWS = 5


def missing_error(request: Request, missing: Positions, space: Space | None) -> MissingTextsError:
    """Make the error for items that are not cached although `on_miss="raise"`.

    Args:
        request: The request that has the items.
        missing: `(m,) int64`, numbers of the items that are not cached, at least one.
        space: The space that was looked in; None where there is no cache.

    Returns:
        The error, to be raised by the caller.
    """
    where = "because there is no cache (cache_path=None)"
    if space is not None:
        where = f"in {space.location}"
    examples = ", ".join(request.show(row) for row in missing[:3].tolist())
    return MissingTextsError(
        f"{len(missing)} of {len(request)} {request.unit}s are not cached {where} "
        f'({request.prompts}), and on_miss="raise". The first: {examples}. Encode them with '
        'on_miss="encode", or check model, revision, dtype and prompts against the cache.',
        missing=len(missing),
    )


def refused_error(
    request: Request, refused: Mapping[int, str], space: Space | None
) -> RefusedTextsError:
    """Make the error for items that the engine refuses.

    Args:
        request: The request that has the items.
        refused: Numbers of the items, at least one, duplicates included, in order; and why.
        space: Where all others are by now; None where nothing is written.

    Returns:
        The error, to be raised by the caller.
    """
    rows = list(refused)
    shown_by_reason: dict[str, list[str]] = {}
    for row in rows[:_SHOWN_ROWS]:
        shown_by_reason.setdefault(refused[row], []).append(f"row {row}, {request.show(row)}")
    examples = "; ".join(f"{', '.join(ns)}: {reason}" for reason, ns in shown_by_reason.items())
    more = len(rows) - _SHOWN_ROWS
    others = "Nothing is written in this run, so it ended here."
    if space is not None:
        others = f"All others are encoded and in {space.location}: the next run finds them there."
    return RefusedTextsError(
        f"{len(rows)} of {len(request)} {request.unit}s cannot be encoded. {examples}"
        f"{f'; and {more} more (error.rows has them all)' if more > 0 else ''}. {others}",
        rows,
    )


def unwritten_message(
    request: Request, missing: int, written: int, space: Space | None, error: CacheError
) -> str:
    """Say that what a call encodes is not kept.

    Args:
        request: The request that has the items.
        missing: How many of them are encoded.
        written: How many of these are in the space by now.
        space: The space.
        error: Why no more are.

    Returns:
        Sentences, for a warning.
    """
    return (
        f"{'no cache' if space is None else space.location} cannot be written, and the run goes on "
        f"without: {missing - written} of {missing} {request.unit}s that were not cached are "
        f"encoded and returned, but not kept; {written} are. A later call tries to write again. "
        f'{error} on_write_error="raise" stops the run instead.'
    )


def failing_error(name: str) -> CacheError:
    """Make the error for rows that are damaged as soon as they are written.

    Args:
        name: The store's.
    """
    return CacheError(
        f"{name}: rows written a moment ago fail their checksum. The disk or its memory is "
        "failing; use another cache_path."
    )


def non_finite_error(request: Request, rows: Positions, of: int, dtype: str) -> NonFiniteError:
    """Make the error for items of a chunk whose vectors hold NaN or infinity.

    Args:
        request: The request that has the items.
        rows: `(m,) int64`, numbers of these items, at least one.
        of: How many items the chunk has.
        dtype: What the engine computes in, "float16", say; "unknown" where it does not say.

    Returns:
        The error, to be raised by the caller.
    """
    row = int(rows.min())  # chunks are sorted by length, not by row
    return NonFiniteError(
        f"The engine returned NaN or infinity for {len(rows)} of {of} {request.unit}s, the first "
        f"in row {row}: {request.show(row)}. {_way_out(dtype)} Nothing of this chunk was written; "
        "chunks before it are kept."
    )


def _way_out(dtype: str) -> str:
    if dtype not in DTYPES:  # an engine that does not say what it computes in
        return "Look for what is special about this text, or whether the model overflows float16."
    others = " or ".join(f"dtype={d!r}" for d in ("bfloat16", "float32") if d != dtype)
    return f"dtype={dtype!r} cannot hold this model's activations, most likely. Use {others}."
