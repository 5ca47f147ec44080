"""How many requests a place in a store was sent, and how many bytes went to and fro."""

from __future__ import annotations

import threading
from typing import NamedTuple

import lance

_WATCHED = 4  # datasets: the newest, and older ones that a thread may still read


class Traffic(NamedTuple):
    """What went to and fro.

    Attributes:
        requests: How many requests.
        read: Bytes that came.
        written: Bytes that went.
    """

    requests: int = 0
    read: int = 0
    written: int = 0

    def since(self, before: Traffic) -> Traffic:
        """What came on top of an earlier count."""
        return Traffic(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.read + self.written


class Tally:
    """Counts what is sent on behalf of one `Location` and of all that were made of it.

    Lance counts by itself what a dataset does; what is asked beside that is counted here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._so_far = Traffic()
        self._watched: list[lance.LanceDataset] = []

    def count(self, requests: int) -> None:
        """Requests that no dataset counts; they are small."""
        with self._lock:
            self._so_far = self._plus(Traffic(requests))

    def watch(self, dataset: lance.LanceDataset) -> None:
        """Count from now on what a dataset does, and what it has done."""
        with self._lock:
            self._watched.append(dataset)
            self._gather()
            del self._watched[:-_WATCHED]

    def total(self) -> Traffic:
        """All until now."""
        with self._lock:
            self._gather()
            return self._so_far

    def _gather(self) -> None:
        for dataset in self._watched:
            new = dataset.io_stats_incremental()
            self._so_far = self._plus(
                Traffic(new.read_iops + new.write_iops, new.read_bytes, new.written_bytes)
            )

    def _plus(self, more: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(self._so_far, more, strict=True)))
