"""Canaries: texts whose vectors a space keeps, to notice that a model is not what it was.

An identity covers what can be looked into. A model behind an endpoint's name, weights in an object
that shows none, a hook: these are noticed because the same texts have other vectors now. Canaries
lie in a table of their own inside the space's folder, so that nothing counts, searches or exports
them with the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embcache.engine.base import Engine
from embcache.errors import CacheError, CacheWriteError, ChangedModelError, EngineError
from embcache.identity.keys import Keys, to_bytes
from embcache.pipeline.cosine import cosines
from embcache.pipeline.request import Request
from embcache.store import Rows, Space
from embcache.store.space import CANARIES
from embcache.store.verify import Values

logger = logging.getLogger(__name__)

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative distances `|a - b| / |a|` up to which two vectors of one canary are the same model's, by
dtype. Honest runs (other batches, eager and compiled) stay below a fifth of them: 1e-6, 1.1e-3 and
1e-2 with all-MiniLM-L6-v2, measured by `benchmarks/canaries.py` (docs/canaries.md). The rest is
room for deeper models, other processors and versions of vLLM: a run that is stopped for nothing
costs more than a change that moves cosines by 0.001."""

UNKNOWN_TOLERANCE = max(TOLERANCES.values())
"""For engines that do not say what they compute in: endpoints, say, which may run in bfloat16."""

_PROMPTS = 4  # of which a space keeps canaries, if its engine can be asked for any of them
_SHOWN = 60


@dataclass(frozen=True)
class _Known:
    """Canaries that a space keeps.

    Attributes:
        values: `(dim,) float32` by the 16 bytes of the key; damaged rows are left out.
        columns: Of each row its columns, texts and prompts among them.
    """

    values: Mapping[bytes, Values]
    columns: list[dict[str, Any]]


class Canaries:
    """Compares an engine with the canaries of a space, and adds to them.

    Args:
        engine: Computes values; it is started, and nobody else uses it meanwhile.
        space: The space whose canaries they are.
        identity: Canonical bytes of its identity.
        write: Whether canaries may be added.
    """

    def __init__(self, engine: Engine, space: Space, identity: bytes, *, write: bool) -> None:
        self._engine = engine
        self._space = space
        self._identity = identity
        self._write = write
        self._compared: set[Hashable] = set()
        self._new: Rows | None = None

    def forget(self) -> None:
        """Compare everything again: the engine is another one now."""
        self._compared.clear()
        self._new = None

    def check(self, request: Request) -> None:
        """Encode the canaries once more and compare, if that was not done yet.

        Where the space has none of this request's kind, they are encoded now, and `commit` adds
        them.

        Args:
            request: Says how texts come to the engine: its prompt, its circumstances.

        Raises:
            ChangedModelError: A vector is further from its canary than `TOLERANCES` allow.
            EngineError: The engine cannot encode a canary which it once could.
        """
        if self.compared(request):
            return
        own = request.canaries(with_prompt=self._space.stores_text)
        known = self._known()
        comparable = own.canaries_again(known.columns)
        for one in comparable:
            if not self.compared(one):
                self._compare(one, known)
                self._compared.add(one.context)
        there = any(_raw(key) in known.values for key in own.keys(self._identity))
        if self._write and not there and len(comparable) < _PROMPTS:
            self._new = self._encode_new(own)
        self._compared.add(request.context)

    def compared(self, request: Request) -> bool:
        """Whether `check` has nothing to do for a request; any thread may ask."""
        return request.context in self._compared

    def commit(self) -> None:
        """Add what `check` encoded, after the first rows: an empty space needs no canaries."""
        if self._new is not None:
            new, self._new = self._new, None
            try:
                self._space.canaries.add(new)
            except CacheWriteError as error:  # of the net beside the cache; the rows are written
                logger.warning(
                    "The canaries of %s could not be written; the next run tries again. %s",
                    self._space.location,
                    error,
                )
            except CacheError as error:
                self._warn(error)

    def _known(self) -> _Known:
        try:
            return self._read()
        except CacheError as error:  # damage there is no reason to stop: rows have checksums
            self._warn(error)
            return _Known({}, [])

    def _warn(self, error: CacheError) -> None:
        logger.warning(
            "The canaries of %s cannot be used, so the model is not compared with the one that "
            "filled it: %s Delete %s, and the next write adds them again.",
            self._space.location,
            error,
            self._space.location.table(CANARIES),
        )

    def _read(self) -> _Known:
        snapshot = self._space.canaries.refresh()
        keys = snapshot.keys()
        values, damaged = snapshot.read_all(np.arange(len(keys)), keys)
        if damaged.any():
            logger.warning(
                "%d canaries of %s are damaged on disk and not compared. `check_space` with "
                "fix=True deletes them; the next write adds them again.",
                damaged.sum(),
                self._space.location,
            )
        names = [name for name in self._space.layout.texts if name in snapshot.columns]
        intact = np.flatnonzero(~damaged)
        columns: list[dict[str, Any]] = [{} for _ in intact]
        if names and len(intact):
            columns = snapshot.take(intact, names).to_pylist()
        return _Known({_raw(keys[row]): values[row] for row in intact.tolist()}, columns)

    def _compare(self, request: Request, known: _Known) -> None:
        raw = map(_raw, request.keys(self._identity))
        cached = {row: known.values[key] for row, key in enumerate(raw) if key in known.values}
        if not cached:
            return
        rows = list(cached)
        try:
            found = dict(zip(rows, self._encode(request, rows), strict=True))
        except Exception as error:  # of the engine, or of whatever model it calls
            raise EngineError(
                f"The canaries of {self._space.location} cannot be encoded, so that nothing says "
                f"whether the model is the one that filled it: {str(error).rstrip('.')}. "
                "canaries=False uses the cache unchecked."
            ) from error
        tolerance = TOLERANCES.get(self._engine.dtype, UNKNOWN_TOLERANCE)
        spreads = {row: spread(cached[row], found[row]) for row in rows}
        logger.debug("canaries of %s differ by %s", self._space.name, spreads)
        beyond = [row for row in rows if not spreads[row] <= tolerance]
        if beyond:
            worst = max(beyond, key=spreads.__getitem__)
            raise ChangedModelError(
                self._message(request, cached[worst], found[worst], worst)
                + f" {len(beyond)} of {len(rows)} canaries differ by more than {tolerance:g} of "
                f"their length, the most that {self._engine.dtype} explains. " + _WAY_OUT
            )

    def _message(self, request: Request, was: Values, now: Values, row: int) -> str:
        made_by = self._space.canaries.refresh().engine_version
        versions = f"cached by {made_by}, now {self._engine.version}"
        if was.shape != now.shape:
            how = f"{len(was)} components in the cache, {len(now)} now"
        elif len(was) == 1:
            how = f"score {was[0]:.6g} in the cache, {now[0]:.6g} now"
        else:
            how = (
                f"cosine {cosines(was[None], now[None])[0]:.6f} with the cached vector, "
                f"{_times_as_long(was, now):.4f} times its length"
            )
        return (
            f"The model is not the one that filled {self._space.location}: canary "
            f"{request.show(row)[:_SHOWN]} ({request.prompts}) has {how} ({versions})."
        )

    def _encode_new(self, request: Request) -> Rows | None:
        """The canaries as rows; those that the engine refuses are left out."""
        try:
            rows = list(range(len(request)))
            values = self._encode(request, rows)
        except Exception as error:
            # An endpoint that takes no long text, say. One by one, then.
            logger.info("Some canaries cannot be encoded (%s); trying each", error)
            rows, values = self._encode_each(request)
            if not rows:
                logger.warning(
                    "%s gets no canaries: the model encodes none of them (%s). If it is changed "
                    "one day and keeps its name, the cache will not notice.",
                    self._space.location,
                    error,
                )
                return None
        keys = request.keys(self._identity)[rows]
        return Rows(keys, values, request.columns(rows))

    def _encode_each(self, request: Request) -> tuple[list[int], Values]:
        rows: list[int] = []
        values: list[Values] = []
        for row in range(len(request)):
            try:
                values.append(self._encode(request, [row]))
                rows.append(row)
            except Exception as error:
                logger.info("Canary %s is left out: %s", request.show(row), error)
        return rows, np.concatenate(values) if values else np.empty((0, 0), np.float32)

    def _encode(self, request: Request, rows: list[int]) -> Values:
        """`(len(rows), dim) float32`, past the chunks, whose sizes follow the user's texts."""
        prepared = self._engine.prepare(request.inputs(rows))
        for row, reason in prepared.refused.items():
            raise EngineError(f"canary {request.show(rows[row])} {reason}")
        found = np.ascontiguousarray(self._engine.embed(prepared.prompts).vectors, np.float32)
        if found.ndim != 2 or len(found) != len(rows) or not np.isfinite(found).all():
            raise EngineError(
                f"The engine ({self._engine.version}) returned an array of shape {found.shape} for "
                f"{len(rows)} canaries, or NaN or infinity; one finite vector each is needed."
            )
        return found


_WAY_OUT = (
    "Has what is behind the model's name changed: weights, adapter, tokenizer, a hook, the "
    "server, the engine? Then give it a revision or identity= of its own, or another cache_path; "
    "or remove the space (`CachedSpace.remove`) to encode all again. canaries=False does not look."
)


def spread(was: Values, now: Values) -> float:
    """How far two vectors of one text are apart, `|was - now| / |was|`, or two scores.

    For a small angle, `1 - cosine` is half its square; unlike the cosine it also sees another
    length. A score below 1 counts as 1: near 0, a relative distance says nothing.

    Args:
        was: `(dim,) float32`.
        now: `(dim,) float32`.

    Returns:
        The distance; infinity where the dimensions differ.
    """
    if was.shape != now.shape:
        return float("inf")
    length = max(float(np.linalg.norm(was)), 1.0 if len(was) == 1 else 1e-30)
    return float(np.linalg.norm(was - now)) / length


def _times_as_long(was: Values, now: Values) -> float:
    length = float(np.linalg.norm(was))
    return float(np.linalg.norm(now)) / length if length else float("inf")


def _raw(key: Keys) -> bytes:
    return to_bytes(key.reshape(1, 2))
