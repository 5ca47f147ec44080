"""Canaries as a space keeps them, and how far two values of one canary are apart."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embcache.identity.keys import Keys, from_bytes, to_bytes
from embcache.pipeline.cosine import cosines
from embcache.store import Rows, Space
from embcache.store.index import unique_keys
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


@dataclass(frozen=True)
class KnownCanaries:
    """Canaries that are kept somewhere.

    Attributes:
        values: `(dim,) float32` by the 16 bytes of the key; damaged rows are left out.
        columns: Of each, in the same order, its columns, texts and prompts among them.
        where: What keeps them, for messages.
        engine_version: What computed them; None where that is not recorded.
    """

    values: Mapping[bytes, Values] = field(default_factory=dict)
    columns: Sequence[Mapping[str, Any]] = ()
    where: str = ""
    engine_version: str | None = None

    @classmethod
    def of(cls, rows: Rows, where: str, engine_version: str | None) -> KnownCanaries:
        """Canaries that were encoded a moment ago, as a space would keep them."""
        columns = [
            {
                name: c if c is None or isinstance(c, str) else c[at]
                for name, c in rows.columns.items()
            }
            for at in range(len(rows))
        ]
        keys = map(raw_key, rows.keys)
        return cls(dict(zip(keys, rows.values, strict=True)), columns, where, engine_version)

    @property
    def with_text(self) -> bool:
        """Whether they carry their texts and prompts."""
        return bool(self.columns and self.columns[0])

    def without(self, others: Iterable[KnownCanaries]) -> KnownCanaries:
        """Those of these whose keys none of the others has."""
        known = {key for other in others for key in other.values}
        kept = [row for row, key in enumerate(self.values) if key not in known]
        keys = [*self.values]
        return replace(
            self,
            values={keys[row]: self.values[keys[row]] for row in kept},
            columns=[self.columns[row] for row in kept],
        )

    def rows(self) -> Rows | None:
        """The same as rows of a space; None for none."""
        if not self.values:
            return None
        names = self.columns[0].keys() if self.columns else ()
        return Rows(
            from_bytes(b"".join(self.values)),
            np.stack(list(self.values.values())),
            {name: [one[name] for one in self.columns] for name in names},
        )

    def difference(self, others: KnownCanaries, dtype: str) -> str | None:
        """How others differ from these where both have the same canary.

        Args:
            others: Those of the same identity elsewhere.
            dtype: What both were computed in.

        Returns:
            Words for a message; None where they differ by no more than `TOLERANCES` allow.
        """
        tolerance = TOLERANCES.get(dtype, UNKNOWN_TOLERANCE)
        both = [key for key in others.values if key in self.values]
        spreads = {key: spread(self.values[key], others.values[key]) for key in both}
        beyond = [key for key in both if not spreads[key] <= tolerance]
        if not beyond:
            return None
        worst = max(beyond, key=spreads.__getitem__)
        return (
            f"{len(beyond)} of {len(both)} canaries differ from those of {self.where} by more "
            f"than {tolerance:g} of their length: "
            + how_apart(self.values[worst], others.values[worst], now="there")
        )


def read_canaries(space: Space) -> KnownCanaries:
    """The canaries that a space keeps.

    Raises:
        CacheError: They cannot be read.
    """
    snapshot = space.canaries.refresh()
    keys = snapshot.keys()
    values, damaged = snapshot.read_all(np.arange(len(keys)), keys)
    if damaged.any():
        logger.warning(
            "%d canaries of %s are damaged on disk and not compared. `check_space` with "
            "fix=True deletes them; the next write adds them again.",
            damaged.sum(),
            space.location,
        )
    names = [name for name in space.layout.texts if name in snapshot.columns]
    intact = np.flatnonzero(~damaged)
    intact = intact[unique_keys(keys[intact])[0]]  # two processes may have added them at once
    columns: list[dict[str, Any]] = [{} for _ in intact]
    if names and len(intact):
        columns = snapshot.take(intact, names).to_pylist()
    return KnownCanaries(
        {raw_key(keys[row]): values[row] for row in intact.tolist()},
        columns,
        str(space.location),
        snapshot.engine_version,
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


def how_apart(was: Values, found: Values, now: str = "now") -> str:
    """How the value of a canary differs from the cached one, for messages.

    Args:
        was: `(dim,) float32`, the one in the cache.
        found: `(dim,) float32`, the other one.
        now: What the other one is called.
    """
    if was.shape != found.shape:
        return f"{len(was)} components in the cache, {len(found)} {now}"
    if len(was) == 1:
        return f"score {was[0]:.6g} in the cache, {found[0]:.6g} {now}"
    length = float(np.linalg.norm(was))
    times = float(np.linalg.norm(found)) / length if length else float("inf")
    return (
        f"cosine {cosines(was[None], found[None])[0]:.6f} with the cached vector, "
        f"{times:.4f} times its length"
    )


def raw_key(key: Keys) -> bytes:
    """The 16 bytes of one key, `(2,) uint64`."""
    return to_bytes(key.reshape(1, 2))
