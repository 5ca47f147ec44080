"""Who encodes which text: each missing key belongs to one block of texts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embcache.identity.keys import Keys
from embcache.store.index import KeyIndex, KeyParts, unique_keys

_DONE = -1


class Claims:
    """The keys that blocks have claimed, and those whose vectors are written by now.

    28 bytes for each key that was missing when it was claimed. They are kept to the end: a replica
    that has not yet seen a commit would otherwise encode again what another one has written.
    """

    def __init__(self) -> None:
        self._keys = KeyParts()
        self._owners = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def claim(self, block: int, keys: Keys) -> npt.NDArray[np.bool_]:
        """Claim keys for a block.

        Args:
            block: Number of the block. One that is worked on again, after its replica has died,
                has the same number, and gets what it had claimed and not written.
            keys: `(n, 2) uint64`, keys that the cache has not; none of them twice.

        Returns:
            `(n,) bool`, which of them the block is to encode.
        """
        found = self._keys.find(keys)
        new = found < 0
        mine = new.copy()
        mine[~new] = self._owners[found[~new]] == block
        self._add(keys[new], block)
        return mine

    def done(self, keys: Keys) -> None:
        """Note that the vectors of keys are written: no block is to encode them again.

        Args:
            keys: `(n, 2) uint64`; those that nobody has claimed are noted, too.
        """
        keys = keys[unique_keys(keys)[0]]
        found = self._keys.find(keys)
        self._owners[found[found >= 0]] = _DONE
        self._add(keys[found < 0], _DONE)

    def _add(self, keys: Keys, owner: int) -> None:
        if not len(keys):
            return
        first, count = len(self._keys), len(self._keys) + len(keys)
        if count > len(self._owners):
            more = np.empty(max(count, 2 * len(self._owners)) - len(self._owners), np.int32)
            self._owners = np.concatenate((self._owners, more))
        self._owners[first:count] = owner
        positions = np.arange(first, count, dtype=np.uint64)
        self._keys = self._keys.extended(KeyIndex.build(keys, positions, first))
