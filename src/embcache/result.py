"""What the caller of an encoder gets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embcache.errors import CacheError
from embcache.matryoshka import Truncation

Vectors = npt.NDArray[np.float32]
RowNumbers = npt.NDArray[np.int64]


class Matrix:
    """The caller's result, allocated once, when its width is known, and filled in place."""

    def __init__(self, count: int, narrow: Truncation | None) -> None:
        self._count = count
        self._narrow = narrow
        self._full: int | None = None
        self.rows: Vectors = np.empty((count, 0), np.float32)

    def allocate(self, dim: int) -> None:
        """Make room, or check that there is; `dim` is that of the full vectors."""
        if self._full is None:
            self._full = dim
            width = dim if self._narrow is None else self._narrow.width(dim)
            self.rows = np.empty((self._count, width), np.float32)
        elif self._full != dim:
            raise CacheError(
                f"The cache holds vectors of {self._full} components for this model and "
                f"the engine returned {dim}. Move the space's folder away, or use another "
                "cache_path."
            )
