"""What n texts cost, from a few constants: the formulas of docs/scaling.md.

What is a fact of embcache's code or format comes from there, or is compared with it by a test. What
was measured says so, and `make bench-scaling` measures it again and says where it differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embcache.identity.keys import KEY_BYTES
from embcache.store.compaction import FANOUT, LARGEST_BYTES, LARGEST_ROWS

INDEX_BYTES = 24
"""Of a key in memory, and in the file that is kept: two words of the key, and a position."""

BUILDING_BYTES = 33
"""Of a key, at the peak of building the index."""

CHECKSUM_BYTES = 8
"""Of a row, read with its vector."""

BESIDE_BYTES = 26
"""Of a row on disk beside its vector and texts: key 16, checksum 8, and some 2 for the number of
tokens, the time, the notes and what Lance needs. Measured."""

MANIFEST_BYTES = 128
"""Of a fragment in each version's manifest. Measured."""

PART_BYTES = 5 * 2**20
"""Of one PUT: Lance uploads in parts. Measured."""

READ_BYTES = 3_000_000
"""Of one GET where all vectors are read, 2 for each fragment not counted; up to 3.6 million where
rows are longer. Measured."""

MERGE_READ_BYTES = 1_000_000
"""Of one GET where fragments are merged. Measured."""

OPEN_REQUESTS, OPEN_REQUESTS_A_FRAGMENT, OPEN_BYTES_A_FRAGMENT = 11, 3, 65_536
"""Of an opening from a store, beside the keys themselves. Measured."""

COMMIT_REQUESTS = 9
"""Of a commit to a store, the parts of its data files not counted. Measured."""

CLAIM_BYTES = KEY_BYTES
"""That a replica sends for a key that it lacks."""

CLAIMED_BYTES = 28
"""That the coordinator holds for a key that was missing at the start."""


@dataclass(frozen=True)
class Corpus:
    """Texts that are, or will be, in one space.

    Attributes:
        texts: How many.
        dim: Components of their vectors.
        text_bytes: Bytes of a text as it is stored, compressed; 0 for `store_text=False`.
    """

    texts: int
    dim: int
    text_bytes: float = 0.0

    @property
    def row_bytes(self) -> float:
        """Of a row on disk."""
        return 4 * self.dim + BESIDE_BYTES + self.text_bytes

    @property
    def stored_bytes(self) -> float:
        """Of all rows on disk, without old versions."""
        return self.texts * self.row_bytes

    @property
    def largest_rows(self) -> int:
        """Of a fragment that is not merged any more."""
        return max(1, min(LARGEST_ROWS, int(LARGEST_BYTES / self.row_bytes)))

    @property
    def fragments(self) -> int:
        """How many there are at the least, once all is merged."""
        return math.ceil(self.texts / self.largest_rows)

    @property
    def manifest_bytes(self) -> int:
        """Of each version, once all is merged."""
        return MANIFEST_BYTES * self.fragments

    def index_bytes(self, processes: int = 1, hosts: int = 1, *, kept: bool = False) -> int:
        """Memory that the key index takes on all hosts.

        Args:
            processes: That have the space open, on all hosts.
            hosts: That they run on.
            kept: Whether they map an index that is kept on each host's own disk.
        """
        return self.texts * INDEX_BYTES * (hosts if kept else processes)

    def rewrites(self, fragment_rows: int) -> float:
        """How often compaction writes each row again, at most.

        Args:
            fragment_rows: Rows of a fragment as it is committed first.
        """
        return max(0, math.ceil(math.log(max(1.0, self.largest_rows / fragment_rows), FANOUT)))

    def opening(self) -> tuple[int, int]:
        """Requests and bytes of an opening from a store, once all is merged."""
        requests = OPEN_REQUESTS + OPEN_REQUESTS_A_FRAGMENT * self.fragments
        return requests, KEY_BYTES * self.texts + OPEN_BYTES_A_FRAGMENT * self.fragments

    def filling(self, fragment_rows: int, seconds: float, interval: float) -> tuple[float, float]:
        """Requests that write to a store and that read from it, while a space is filled.

        Args:
            fragment_rows: Rows of a fragment as it is committed first.
            seconds: That filling takes.
            interval: Seconds between two commits.
        """
        again = self.rewrites(fragment_rows)
        commits = min(seconds / interval, self.texts / fragment_rows)
        pieces = self.texts / fragment_rows + again * self.stored_bytes / LARGEST_BYTES
        puts = (1 + again) * self.stored_bytes / PART_BYTES + pieces + COMMIT_REQUESTS * commits
        return puts, again * self.stored_bytes / MERGE_READ_BYTES

    def reading(self) -> float:
        """Requests that read all vectors from a store, once all is merged."""
        return self.texts * (4 * self.dim + CHECKSUM_BYTES) / READ_BYTES + 2 * self.fragments

    def claims(self, missing: int) -> tuple[int, int]:
        """Bytes that replicas send to claim keys, and that the coordinator holds for them.

        Args:
            missing: How many keys were missing at the start.
        """
        return CLAIM_BYTES * missing, CLAIMED_BYTES * missing


def gpu_hours(texts: int, tokens: float, tokens_a_second: float) -> float:
    """Hours of one GPU; those of n replicas are that divided by n.

    Args:
        texts: How many have to be encoded.
        tokens: Of a text, on average.
        tokens_a_second: What one GPU was measured to encode.
    """
    return texts * tokens / tokens_a_second / 3600
