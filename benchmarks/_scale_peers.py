"""Contenders of the part `scale`: opening a space of many keys, and looking some of them up."""

from __future__ import annotations

from typing import Any

import numpy as np
from _scaling_keys import Found, batches, keep_large, sample, sorted_shards
from _scaling_tables import fill as fill_space
from _scaling_tables import keep as keep_index
from _setup import Contender, Setup, nothing, once

from embcache.identity.keys import Keys
from embcache.store import Database, index_file
from object_store import IDENTITY

LOOKED_UP = 100_000
_SORTED_BITS = 6  # as `_scaling_keys.keep_large` has them


def fill(setup: Setup) -> Contender:
    """Have the store make a space of so many keys, and keep their index as it does by itself."""

    def make() -> None:
        space = fill_space(_cache(setup), batches(setup.texts))
        assert len(space.refresh()) == setup.texts
        if setup.texts >= index_file.LEAST_KEYS:
            keep_index(_cache(setup))

    return once(make, nothing)


def open_and_find(setup: Setup) -> Contender:
    """Open the space, and look 100,000 keys up, half of which are there."""
    wanted, there = sample(batches(setup.texts), setup.texts, _looked_up(setup))

    def find() -> Any:
        space = Database(_cache(setup), writable=False).space(IDENTITY, "none", "none")
        return space.refresh().find(wanted)

    return once(find, lambda found: _check(found, there))


def fill_simulated(setup: Setup) -> Contender:
    """Make only the key index of a space, as large as memory does not hold."""

    def make() -> None:
        _cache(setup).mkdir()
        keep_large(_cache(setup), setup.texts)

    return once(make, nothing)


def open_and_find_simulated(setup: Setup) -> Contender:
    """Map the key index, and look 100,000 keys up, half of which are there."""
    wanted, there = _sample_of_shards(setup)

    def find() -> Any:
        loaded = index_file.load(_cache(setup), setup.texts)
        assert loaded is not None
        return loaded[1].find(wanted)

    return once(find, lambda found: _check(found, there))


def _sample_of_shards(setup: Setup) -> tuple[Keys, Found]:
    shards = sorted_shards(setup.texts)
    stored = (keys for shard, size in shards for keys in batches(size, shard, _SORTED_BITS))
    return sample(stored, setup.texts, _looked_up(setup))


def _looked_up(setup: Setup) -> int:
    return min(LOOKED_UP, setup.texts)


def _cache(setup: Setup) -> Any:
    return setup.folder / f"keys-{setup.texts}"


def _check(found: Any, there: Found) -> None:
    if not np.array_equal(found >= 0, there):
        raise SystemExit("WRONG KEYS: some that are there were not found, or others were.")
