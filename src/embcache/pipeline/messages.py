"""Errors about items of a request, which name the caller's rows."""

from __future__ import annotations

from collections.abc import Mapping

from embcache.engine.base import Engine
from embcache.engine.failures import memory_advice, said
from embcache.errors import (
    CacheError,
    EngineError,
    MissingTextsError,
    NonFiniteError,
    RefusedTextsError,
    WrongOutputError,
)
from embcache.identity.identity import DTYPES
from embcache.pipeline.chunks import Chunk
from embcache.pipeline.request import Request
from embcache.store import Space
from embcache.store.index import Positions

_SHOWN_ROWS = 5


def missing_error(
    request: Request, missing: Positions, space: Space | None, upstream: object = None
) -> MissingTextsError:
    """Make the error for items that are not cached although `on_miss="raise"`.

    Args:
        request: The request that has the items.
        missing: `(m,) int64`, numbers of the items that are not cached, at least one.
        space: The space that was looked in; None where there is no cache.
        upstream: Names the upstream caches that were looked in; None for none.

    Returns:
        The error, to be raised by the caller.
    """
    where = "because there is no cache (cache_path=None)"
    if space is not None:
        where = f"in {space.location}"
    if upstream is not None:
        where += f", nor upstream in {upstream}"
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
    """Say that what a call encodes, or finds upstream, is not kept.

    Args:
        request: The request that has the items.
        missing: How many of them are encoded, or were found upstream.
        written: How many of these are in the space by now.
        space: The space.
        error: Why no more are.

    Returns:
        Sentences, for a warning.
    """
    return (
        f"{'no cache' if space is None else space.location} cannot be written, and the run goes on "
        f"without: {missing - written} of {missing} {request.unit}s that were not cached are "
        f"returned, but not kept; {written} are. A later call tries to write again. "
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


def non_finite_reason(dtype: str) -> str:
    """Why an item is refused of whose vector the engine makes NaN or infinity; see `Prepared`.

    Args:
        dtype: What the engine computes in.
    """
    return f"gets NaN or infinity from the engine. {_way_out(dtype).rstrip('.')}"


def wrong_shape_error(
    request: Request, version: str, shape: tuple[int, ...], n_tokens: int | None, count: int
) -> WrongOutputError:
    """Make the error for an engine that returned too few or too many vectors.

    Args:
        request: The request that has the items.
        version: Name and version of the engine.
        shape: Of the array that it returned.
        n_tokens: How many token counts it returned; None for none.
        count: How many items it was given.

    Returns:
        The error, to be raised by the caller.
    """
    counted = "" if n_tokens is None else f" and {n_tokens} token counts"
    return WrongOutputError(
        f"The engine ({version}) returned an array of shape {shape}{counted} for {count} "
        f"{request.unit}s; one vector each, ({count}, dim), is needed. Nothing of this chunk was "
        "written; chunks before it are kept."
    )


def memory_error(
    request: Request, chunk: Chunk, piece: Chunk, engine: Engine, failure: Exception
) -> EngineError:
    """Make the error for an engine whose memory does not suffice for a single item.

    Args:
        request: The request that has the items.
        chunk: The items that it failed on at first.
        piece: The one item that it failed on at last.
        engine: The engine.
        failure: What it raised.

    Returns:
        The error, to be raised by the caller.
    """
    row = int(piece.rows[0])
    return EngineError(
        f"The engine ({engine.version}) ran out of memory on {_sizes(request, chunk)}, and in "
        f"ever smaller parts down to one, row {row}, {request.show(row)}, about "
        f"{piece.lengths[0]:,} tokens: {said(failure)}. {memory_advice(engine)} {_KEPT}"
    )


def given_up_error(
    request: Request,
    chunk: Chunk,
    engine: Engine,
    failure: Exception,
    failures: int,
    restarts: int,
) -> EngineError:
    """Make the error for an engine that fails again and again.

    Args:
        request: The request that has the items.
        chunk: The items that it failed on at first.
        engine: The engine.
        failure: What it raised last.
        failures: How many calls failed.
        restarts: After how many of them it was gone.

    Returns:
        The error, to be raised by the caller.
    """
    return EngineError(
        f"The engine ({engine.version}) failed {failures} times on {_sizes(request, chunk)} and "
        f"parts of them, {restarts} times so that it had to be started again. The last: "
        f"{said(failure)}. If memory is short: {memory_advice(engine)} {_KEPT}"
    )


_KEPT = (
    "What was encoded before is kept; where a cache is written, the next run goes on from there."
)


def _sizes(request: Request, chunk: Chunk) -> str:
    return (
        f"{len(chunk)} {request.unit}s (the longest has about {chunk.lengths.max():,} tokens, all "
        f"together {chunk.lengths.sum():,})"
    )


def _way_out(dtype: str) -> str:
    if dtype not in DTYPES:  # an engine that does not say what it computes in
        return "Look for what is special about this text, or whether the model overflows float16."
    others = " or ".join(f"dtype={d!r}" for d in ("bfloat16", "float32") if d != dtype)
    return f"dtype={dtype!r} cannot hold this model's activations, most likely. Use {others}."
