from __future__ import annotations

import numpy as np
import pytest

from embcache.pipeline.cosine import cosines

ROWS = np.array([[3, 4], [0, 0], [-3, -4], [4, -3]], np.float32)


def test_row_by_row() -> None:
    assert cosines(ROWS, ROWS).tolist() == [1, 1, 1, 1]
    assert cosines(ROWS, ROWS[::-1].copy()) == pytest.approx([0, 0, 0, 0])


def test_one_against_all() -> None:
    assert cosines(ROWS, ROWS[:1]).tolist() == [1, 0, -1, 0]
    assert cosines(ROWS[:0], ROWS[:1]).shape == (0,)


def test_in_float64() -> None:
    tiny = np.full((1, 3), 1e-30, np.float32)  # its square is 0 in float32
    assert cosines(tiny, 2 * tiny) == pytest.approx([1])
