from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.cluster.claims import Claims
from embcache.identity.keys import Keys

DONE = "done"


def keys(*numbers: int) -> Keys:
    """Keys that share their first half by threes, as hashes hardly ever do."""
    return np.array([(n // 3, n) for n in numbers], np.uint64).reshape(-1, 2)


def test_a_key_belongs_to_the_block_that_asked_first() -> None:
    claims = Claims()
    assert claims.claim(0, keys(1, 2, 3)).tolist() == [True, True, True]
    assert claims.claim(1, keys(3, 4, 1)).tolist() == [False, True, False]
    assert len(claims) == 4


def test_a_block_that_runs_again_gets_what_it_has_not_written() -> None:
    claims = Claims()
    claims.claim(0, keys(1, 2, 3))
    claims.done(keys(2))
    assert claims.claim(0, keys(3, 2, 1)).tolist() == [True, False, True]
    assert claims.claim(1, keys(1, 2, 3)).tolist() == [False, False, False]


def test_what_nobody_has_claimed_may_be_written() -> None:
    claims = Claims()
    claims.done(keys(7, 7, 8))
    claims.done(keys(8, 9))
    assert claims.claim(0, keys(7, 8, 9, 10)).tolist() == [False, False, False, True]
    assert len(claims) == 4


def test_nothing_is_claimed_and_nothing_done() -> None:
    claims = Claims()
    assert claims.claim(0, keys()).tolist() == []
    claims.done(keys())
    assert len(claims) == 0


def test_keys_take_28_bytes_each() -> None:
    claims, every = Claims(), np.random.default_rng(0).integers(0, 2**63, (2**17, 2), np.uint64)
    for block, at in enumerate(range(0, len(every), 2**12)):
        assert claims.claim(block, every[at : at + 2**12]).all()
    parts = claims._keys.parts
    held = sum(p.heads.nbytes + p.tails.nbytes + p.positions.nbytes for p in parts)
    assert held == 24 * len(every)
    assert claims._owners.nbytes <= 2 * 4 * len(every)


OPERATIONS = st.lists(
    st.tuples(
        st.one_of(st.just(DONE), st.integers(0, 4)),
        st.lists(st.integers(0, 20), unique=True, max_size=12),
    ),
    max_size=20,
)


@given(OPERATIONS)
@pytest.mark.filterwarnings("error")
def test_against_a_dict(operations: list[tuple[str | int, list[int]]]) -> None:
    claims, owners = Claims(), dict[int, str | int]()
    for block, numbers in operations:
        if isinstance(block, str):
            claims.done(keys(*numbers))
            owners.update(dict.fromkeys(numbers, DONE))
            continue
        mine = claims.claim(block, keys(*numbers))
        assert mine.tolist() == [owners.setdefault(number, block) == block for number in numbers]
    assert len(claims) == len(owners)
