"""The contract between the pipeline and whatever keeps values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from embcache.identity.keys import Keys
from embcache.store.index import Positions
from embcache.store.rows import Rows
from embcache.store.verify import Values


class Part(NamedTuple):
    """Some of the rows that a `Snapshot.read` was asked for.

    Attributes:
        at: Which of them, `(m,) int64`, counted in the order in which they were asked for.
        values: `(m, dim) float32`.
        damaged: `(m,) bool`, True where a row fails its checksum or is not finite; its values are
            undefined.
    """

    at: npt.NDArray[np.int64]
    values: Values
    damaged: npt.NDArray[np.bool_]


class Snapshot(Protocol):
    """What a store held at one moment. It never changes, so threads may share it."""

    @property
    def dim(self) -> int | None:
        """Components of the store's vectors, 1 for scores; None before the first row."""
        ...

    @property
    def engine_version(self) -> str | None:
        """Engine package and version of the first writer; None where that is not recorded."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def find(self, keys: Keys) -> Positions:
        """Look keys up.

        Args:
            keys: `(n, 2) uint64`.

        Returns:
            `(n,) int64`, where each key's row lies, for `read`; -1 for a miss. Of several rows with
            one key, the one that was committed first.
        """
        ...

    def read(self, positions: Positions, keys: Keys) -> Iterator[Part]:
        """Read rows by parts, in whatever order is fastest, each row verified.

        Args:
            positions: `(n,) int64`, from `find`, none of them -1.
            keys: `(n, 2) uint64`, the keys that the rows should have.

        Raises:
            CacheError: The table cannot be read; also where a compaction by another process has
                removed this moment's files since.
        """
        ...


class Store(Protocol):
    """Keeps values under keys. Several threads may use one at once."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def refresh(self, *, now: bool = False) -> Snapshot:
        """See what was committed by now, by whatever process.

        Args:
            now: Whether to look in any case, where that takes a request to a store.

        Returns:
            The same object as before where nothing was.

        Raises:
            CacheError: The store cannot be read, or holds another identity.
        """
        ...

    def add(self, rows: Rows) -> Snapshot:
        """Commit those of some rows whose keys are not there yet, in one transaction.

        Returns:
            What the store holds now: the given rows, or those that others committed before.

        Raises:
            CacheError: The values have another dimension than those that are there, or the store
                cannot be written.
        """
        ...

    def drop(self, keys: Keys) -> None:
        """Remove every row of these keys, which are damaged.

        Raises:
            CacheError: The store cannot be written.
        """
        ...
