from __future__ import annotations

import numpy as np
import xxhash

from embcache.identity.keys import to_bytes
from embcache.store.verify import row_checksums


def test_the_documented_formula() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, (3000, 2), dtype=np.uint64)
    vectors = np.random.default_rng(1).standard_normal((3000, 100)).astype(np.float32)
    raw = to_bytes(keys)
    expected = [
        xxhash.xxh3_64_intdigest(raw[16 * i : 16 * i + 16] + vectors[i].astype("<f4").tobytes())
        for i in range(3000)
    ]
    assert row_checksums(keys, vectors).tolist() == expected


def test_no_rows() -> None:
    sums = row_checksums(np.empty((0, 2), np.uint64), np.empty((0, 5), np.float32))
    assert sums.shape == (0,) and sums.dtype == np.uint64
