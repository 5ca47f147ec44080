"""Shorter vectors out of full ones, for models that were trained for it (Matryoshka).

Matryoshka Representation Learning (Kusupati et al., 2022, arXiv:2205.13147) trains a model so that
the first components of a vector are a good vector by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embcache.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]

# Vectors that were normalised in float32 are within 1e-6 of length 1; in bfloat16, within 4e-3.
_UNIT_LENGTH_TOLERANCE = 5e-3
_LEAST_NORM = 1e-12  # as torch.nn.functional.normalize


class Truncation:
    """Cuts full vectors to their first components.

    Where the full vectors are of length 1, the model normalises, and so are the cut ones. That is
    decided on the first batch, once and for all: it is a property of the model.

    Args:
        dim: Number of components to keep.

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
        """Components of a cut vector.

        Raises:
            ConfigError: The full vectors are shorter than that.
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


def truncated_meta(meta: ModelMeta, dim: int) -> ModelMeta:
    """The ModelMeta under which mteb keeps the results of cut vectors apart from the full ones'.

    As `mteb.get_model(..., embed_dim=...)` does it.
    """
    kwargs = {**(meta.experiment_kwargs or {}), "embed_dim": dim}
    return meta.model_copy(update={"embed_dim": dim, "experiment_kwargs": kwargs})


def warn_if_untrained(dim: int, meta: ModelMeta | None, config: Mapping[str, Any]) -> None:
    """Warn unless mteb's registry or the model's configuration says that it is Matryoshka.

    Args:
        dim: Number of components to keep.
        meta: Its `embed_dim` is a list for Matryoshka models.
        config: The model's config.json; vLLM's `is_matryoshka` and `matryoshka_dimensions`.
    """
    listed = getattr(meta, "embed_dim", None)
    dims = config.get("matryoshka_dimensions") or (listed if isinstance(listed, list) else None)
    if dims:
        if dim not in dims:
            logger.warning(
                "truncate_dim=%d is none of the sizes that this model was trained for: %s. Scores "
                "may be lower than they need to be.",
                dim,
                ", ".join(map(str, sorted(dims))),
            )
    elif not config.get("is_matryoshka"):
        logger.warning(
            "truncate_dim=%d: nothing says that %s was trained for it (Matryoshka: matryoshka_"
            "dimensions in its config.json, several embed_dim in mteb's registry). Vectors of "
            "models that were not lose quality when they are cut.",
            dim,
            getattr(meta, "name", "this model"),
        )


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
