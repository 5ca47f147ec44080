"""What the caller gets: full vectors, or shorter ones of models trained for it (Matryoshka).

Matryoshka Representation Learning (Kusupati et al., 2022, arXiv:2205.13147) trains a model so that
the first components of a vector are a good vector by themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embcache.errors import CacheError, ConfigError
from embcache.pipeline.memory import get_ahead
from embcache.store.index import Positions

Vectors = npt.NDArray[np.float32]

# Vectors that were normalised in float32 are within 1e-6 of length 1; in bfloat16, within 4e-3.
_UNIT_LENGTH_TOLERANCE = 5e-3
_LEAST_NORM = 1e-12  # as torch.nn.functional.normalize


class Truncation:
    """Cuts full vectors to their first components.

    Where the full vectors have length 1, the model normalises its vectors, and so the cut ones are
    normalised again. That is decided on the first batch, for all later ones: it is a property of
    the model.

    Args:
        dim: Number of components to keep.

    Attributes:
        dim: As given.

    Raises:
        ConfigError: `dim` is no positive integer.
    """

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ConfigError(
                f"truncate_dim={dim!r} must be a positive number of components, 256, say; None "
                "keeps them all."
            )
        self.dim = dim
        self._normalised: bool | None = None

    def width(self, full: int) -> int:
        """How many components a cut vector has.

        Args:
            full: Components of the full vectors.

        Raises:
            ConfigError: The full vectors have fewer components than are to be kept.
        """
        if self.dim > full:
            raise ConfigError(
                f"truncate_dim={self.dim}, and this model's vectors have {full} components. Use "
                f"at most {full}, or None."
            )
        return self.dim

    def __call__(self, vectors: Vectors) -> Vectors:
        """Cut `(n, full) float32` to `(n, dim) float32`."""
        short = vectors[:, : self.dim]
        if self._normalised is None and len(vectors):
            off = np.abs(np.linalg.norm(vectors, axis=1) - 1)
            self._normalised = bool((off < _UNIT_LENGTH_TOLERANCE).all())
        if not self._normalised:
            return short
        norms = np.linalg.norm(short, axis=1, keepdims=True)
        return np.asarray(short / np.maximum(norms, _LEAST_NORM))


class Result:
    """Vectors for the caller of an encoder: allocated when their width is known, filled in place.

    Truncation happens here and nowhere else: stores hold the full vectors.

    Args:
        count: Number of items, duplicates included.
        truncation: Cuts the full vectors; None to return them whole.

    Attributes:
        values: `(count, width) float32`, row i = item i; `width` is 0 until `allocate`.
    """

    def __init__(self, count: int, truncation: Truncation | None = None) -> None:
        self._count = count
        self._truncation = truncation
        self._dim: int | None = None
        self._expected = False
        self.values: Vectors = np.empty((count, 0), np.float32)

    def allocate(self, dim: int) -> None:
        """Make room for vectors; a later call only checks that they fit.

        Args:
            dim: Components of the full vectors.

        Raises:
            ConfigError: More components are to be kept than the full vectors have.
            CacheError: Other vectors of the same call have another number of components.
        """
        if self._dim is None:
            self._dim = dim
            width = dim if self._truncation is None else self._truncation.width(dim)
            self.values = np.empty((self._count, width), np.float32)
        elif self._dim != dim:
            raise CacheError(
                f"The cache holds vectors of {self._dim} components for this model and "
                f"the engine returned {dim}. Move the space's folder away, or use another "
                "cache_path."
            )

    def expect_all(self) -> None:
        """Get ready for all rows to be put; a later call does nothing."""
        if not self._expected:
            self._expected = True
            get_ahead(self.values)

    def put(self, rows: Positions, vectors: Vectors) -> None:
        """Fill in some rows, cut if need be.

        Args:
            rows: `(m,) int64`, which rows.
            vectors: `(m, dim) float32`, their full vectors.
        """
        self.values[rows] = vectors if self._truncation is None else self._truncation(vectors)

    def repeat(self, source: Positions) -> None:
        """Copy rows to their duplicates.

        Args:
            source: `(count,) int64`; row i becomes a copy of row `source[i]`, which may be itself.
        """
        copies = np.flatnonzero(source != np.arange(len(source)))
        if len(copies):
            self.values[copies] = self.values[source[copies]]
