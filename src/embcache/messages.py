"""Errors of the pipeline that take more than a line to word."""

from __future__ import annotations

from embcache.errors import MissingTextsError, NonFiniteError
from embcache.identity import DTYPES
from embcache.request import Request
from embcache.result import RowNumbers
from embcache.store import Space


def missing_error(request: Request, missing: RowNumbers, space: Space | None) -> MissingTextsError:
    """`on_miss="raise"`, and these rows are not cached."""
    # Not `if space`: an empty space is false.
    where = "because there is no cache (cache_path=None)"
    if space is not None:
        where = f"in {space.path}"
    examples = ", ".join(request.show(row) for row in missing[:3].tolist())
    return MissingTextsError(
        f"{len(missing)} of {len(request)} {request.unit}s are not cached {where} "
        f'({request.prompts}), and on_miss="raise". The first: {examples}. Encode them with '
        'on_miss="encode", or check model, revision, dtype and prompts against the cache.',
        missing=len(missing),
    )


def non_finite_error(request: Request, rows: RowNumbers, of: int, dtype: str) -> NonFiniteError:
    """The engine returned NaN or infinity for these rows of a chunk.

    Args:
        request: Of which they are.
        rows: Their numbers, at least one.
        of: Rows in the chunk.
        dtype: What the engine computes in.
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
