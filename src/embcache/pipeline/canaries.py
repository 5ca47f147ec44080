"""Canaries: texts whose vectors a space keeps, to notice that a model is not what it was.

An identity covers what can be looked into. A model behind an endpoint's name, weights in an object
that shows none, a hook: these are noticed because the same texts have other vectors now. Canaries
lie in a table of their own inside the space's folder, so that nothing counts, searches or exports
them with the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from embcache.engine.base import Engine
from embcache.engine.failures import let_go, memory_advice, out_of_memory
from embcache.errors import CacheError, CacheWriteError, ChangedModelError, EngineError
from embcache.identity.identity import Identity
from embcache.pipeline.known_canaries import (
    TOLERANCES,
    UNKNOWN_TOLERANCE,
    KnownCanaries,
    how_apart,
    raw_key,
    read_canaries,
    spread,
)
from embcache.pipeline.request import Request
from embcache.store import Rows, Space
from embcache.store.forks import ForkLock
from embcache.store.lance_errors import cause_of
from embcache.store.verify import Values

logger = logging.getLogger(__name__)

_PROMPTS = 4  # of which a space keeps canaries, if its engine can be asked for any of them
_SHOWN = 60


class Canaries:
    """Compares an engine with the canaries of a space, and adds to them.

    Args:
        engine: Computes values; it is started, and nobody else uses it meanwhile.
        space: The space whose canaries they are; None where values are kept nowhere. Canaries of
            upstream spaces are then all that there is.
        identity: Its identity.
        write: Whether canaries may be added to the space.
        make: Whether canaries are encoded where none are known.
    """

    def __init__(
        self, engine: Engine, space: Space | None, identity: Identity, *, write: bool, make: bool
    ) -> None:
        self._engine = engine
        self._space = space
        self._identity = identity.to_bytes()
        self._dtype = identity.dtype
        self._write = write and space is not None
        self._make = make
        self._compared: set[Hashable] = set()
        self._lent: list[KnownCanaries] = []
        self._new: list[Rows] = []
        self._unwritten: CacheWriteError | None = None
        self._told = False
        self._warned = False
        self._lock = ForkLock()  # upstreams are read beside the engine

    def forget(self) -> None:
        """Compare everything again: the engine is another one now."""
        self._compared.clear()
        with self._lock:
            self._new.clear()

    def known(self) -> list[KnownCanaries]:
        """The space's canaries, and those of upstream spaces that are not among them."""
        every = [] if self._space is None else [self._of_space(self._space)]
        for lent in list(self._lent):
            every.append(lent.without(every))
        return every

    def difference(self, others: KnownCanaries) -> str | None:
        """How an upstream's canaries differ from those that are known here.

        Args:
            others: The upstream's.

        Returns:
            Words for a message; None where both agree, or have none in common.
        """
        found = (known.difference(others, self._dtype) for known in self.known())
        return next(filter(None, found), None)

    def lend(self, others: KnownCanaries) -> None:
        """Compare the engine with an upstream's canaries too, and have `commit` keep them.

        Args:
            others: The upstream's, of which none differs from one that is known here.
        """
        new = others.without(self.known())
        rows = new.rows()
        if rows is None:
            return
        with self._lock:
            self._lent.append(new)
            if self._write:
                self._new.append(rows)
        self._compared.clear()

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
        every = self.known()
        own = request.canaries(with_prompt=self._with_prompts(every))
        comparable = {one.context: one for known in every for one in _again(request, known)}
        for context, one in comparable.items():
            if context not in self._compared:
                self._compare(one, every)
                self._compared.add(context)
        there = {key for known in every for key in known.values}
        kept = any(raw_key(key) in there for key in own.keys(self._identity))
        if self._make and not kept and len(comparable) < _PROMPTS:
            self._keep(self._encode_new(own))
        self._compared.add(request.context)

    def compared(self, request: Request) -> bool:
        """Whether `check` has nothing to do for a request; any thread may ask."""
        return request.context in self._compared

    def commit(self) -> None:
        """Add what `check` encoded, after the first rows: an empty space needs no canaries.

        Where they cannot be written, they wait for the next time; see `tell_of_refusal`.

        Raises:
            ChangedModelError: Another process, which began to fill the same space at the same
                time, has added others.
        """
        with self._lock:
            new, self._new = self._new, []
        if self._space is None:
            return
        for rows in new:
            try:
                self._space.canaries.add(rows)
            except CacheWriteError as error:  # of the net beside the cache; the rows are written
                self._unwritten = error
                with self._lock:
                    self._new.append(rows)
            except CacheError as error:
                self._warn(self._space, error)
            else:
                self._unwritten = None
                self._compare_kept(self._space, rows)

    def tell_of_refusal(self) -> None:
        """Warn once that canaries could not be written; not where the same keeps rows out."""
        if self._unwritten is None or self._space is None or self._told:
            return
        self._told = True
        logger.warning(
            "The canaries of %s could not be written, so that nothing tells yet whether the model "
            "changes one day; the next write tries again. %s",
            self._space.location,
            self._unwritten,
        )

    def _compare_kept(self, space: Space, rows: Rows) -> None:
        """Compare canaries that were just added with those that are there: the first ones count."""
        own = KnownCanaries.of(rows, "this run", self._engine.version)
        if differing := self._of_space(space).difference(own, self._dtype):
            raise ChangedModelError(
                f"Another process fills {space.location} with another model at the same time: "
                f"{differing}. {_WAY_OUT}"
            )

    def _keep(self, rows: Rows | None) -> None:
        """Have new canaries committed; where nothing is kept, remember them for the upstream."""
        if rows is None:
            return
        with self._lock:
            if self._write:
                self._new.append(rows)
            else:
                self._lent.append(KnownCanaries.of(rows, "this run", self._engine.version))

    def _with_prompts(self, every: list[KnownCanaries]) -> bool:
        """Whether new canaries carry their texts, and so may have prompts."""
        if self._space is not None:
            return self._space.stores_text
        return all(known.with_text for known in every if known.values)

    def _of_space(self, space: Space) -> KnownCanaries:
        try:
            return read_canaries(space)
        except CacheError as error:  # damage there is no reason to stop: rows have checksums
            self._warn(space, error)
            return KnownCanaries()

    def _warn(self, space: Space, error: CacheError) -> None:
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "The canaries of %s cannot be used, so the model is not compared with the one that "
            "filled it: %s `check_space` with fix=True deletes them; the next write adds them "
            "again.",
            space.location,
            cause_of(error),
        )

    def _compare(self, request: Request, every: list[KnownCanaries]) -> None:
        keepers: dict[int, KnownCanaries] = {}
        keys = [raw_key(key) for key in request.keys(self._identity)]
        for row, key in enumerate(keys):
            if keeper := next((known for known in every if key in known.values), None):
                keepers[row] = keeper
        if not keepers:
            return
        cached = {row: keeper.values[keys[row]] for row, keeper in keepers.items()}
        rows = list(cached)
        try:
            found = dict(zip(rows, self._encode(request, rows), strict=True))
        except Exception as error:  # of the engine, or of whatever model it calls
            advice = f"{memory_advice(self._engine)} " if out_of_memory(error) else ""
            raise EngineError(
                f"The canaries of {keepers[rows[0]].where} cannot be encoded, so that nothing says "
                f"whether the model is the one that filled it: {str(error).rstrip('.')}. {advice}"
                "canaries=False uses the cache unchecked."
            ) from error
        tolerance = TOLERANCES.get(self._engine.dtype, UNKNOWN_TOLERANCE)
        spreads = {row: spread(cached[row], found[row]) for row in rows}
        logger.debug("canaries of %s differ by %s", keepers[rows[0]].where, spreads)
        beyond = [row for row in rows if not spreads[row] <= tolerance]
        if beyond:
            worst = max(beyond, key=spreads.__getitem__)
            raise ChangedModelError(
                f"The model is not the one that filled {keepers[worst].where}: canary "
                f"{request.show(worst)[:_SHOWN]} ({request.prompts}) has "
                f"{how_apart(cached[worst], found[worst])} "
                f"(cached by {keepers[worst].engine_version}, now {self._engine.version})."
                f" {len(beyond)} of {len(rows)} canaries differ by more than {tolerance:g} of "
                f"their length, the most that {self._engine.dtype} explains. " + _WAY_OUT
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
                    "A cache" if self._space is None else self._space.location,
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
        found = self._embed(prepared.prompts)
        if found.ndim != 2 or len(found) != len(rows) or not np.isfinite(found).all():
            raise EngineError(
                f"The engine ({self._engine.version}) returned an array of shape {found.shape} for "
                f"{len(rows)} canaries, or NaN or infinity; one finite vector each is needed."
            )
        return found

    def _embed(self, prompts: Sequence[Any]) -> Values:
        """All at once; one by one where memory does not suffice for that."""
        try:
            return np.ascontiguousarray(self._engine.embed(prompts).vectors, np.float32)
        except Exception as error:
            if len(prompts) == 1 or not out_of_memory(error):
                raise
            let_go(error)
            logger.info("Memory does not suffice for all canaries at once; trying each")
        return np.concatenate([self._embed([prompt]) for prompt in prompts])


_WAY_OUT = (
    "Has what is behind the model's name changed: weights, adapter, tokenizer, a hook, the "
    "server, the engine? Then give it a revision or identity= of its own, or another cache_path; "
    "or remove the space (`CachedSpace.remove`) to encode all again. canaries=False does not look."
)


def _again(request: Request, known: KnownCanaries) -> Sequence[Request]:
    """The requests by which canaries that are kept somewhere can be encoded once more."""
    own = request.canaries(with_prompt=known.with_text)
    return own.canaries_again(known.columns)
