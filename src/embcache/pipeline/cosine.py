"""Cosines of vectors: of what is searched, compared, and checked by canaries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cosines(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Cosines row by row, in float64.

    Equal rows have exactly 1, zero rows too; a zero row and another have 0.

    Args:
        left: `(n, dim) float32`.
        right: `(n, dim) float32`, or `(1, dim)`, which is compared with every row.

    Returns:
        `(n,) float64`, from -1 to 1.
    """
    x, y = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found = (x * y).sum(axis=1) / np.where(norms == 0, 1, norms)
    same = (x == y).all(axis=1)
    return np.asarray(np.where(same, 1.0, np.clip(found, -1, 1)))
