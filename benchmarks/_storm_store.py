"""A storm in an object store: the store, who kills it, and what is done with the cache at last."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from _known import encode, open_encoder, text_of
from _storm_worker import Place

if TYPE_CHECKING:
    from tests.object_store import ObjectStore

_LONGEST_OUTAGE = 20.0  # seconds, beside the few that the store takes to start


@contextmanager
def started_store(folder: Path) -> Iterator[ObjectStore]:
    """The tests' object store, with its credentials in the environment.

    Args:
        folder: Of what it holds; made here, removed at the end.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.object_store import ObjectStore

    folder.mkdir()
    store = ObjectStore(folder)
    try:
        store.start()
        os.environ.update(store.environment, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        yield store
    finally:
        store.remove()


class Killer:
    """Kills the store at random moments, and starts it again some seconds later.

    Args:
        store: The store.
        kills: How often.
        seed: Decides when, and for how long it is gone.

    Attributes:
        kills: As given.
        done: How often it was killed by now.
    """

    def __init__(self, store: ObjectStore, kills: int, seed: int) -> None:
        self.store = store
        self.kills = kills
        self.done = 0
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        """Kill it from now on, evenly over a time."""
        self._thread = threading.Thread(target=self._run, args=(seconds,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Leave it alone from now on, and running.

        Raises:
            RuntimeError: It did not start again.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._failed is not None:
            raise RuntimeError("the store did not start again") from self._failed

    def _run(self, seconds: float) -> None:
        try:
            for _ in range(self.kills):
                if self._stop.wait(seconds / self.kills * self._rng.uniform(0.2, 0.7)):
                    return
                began = time.monotonic()
                self.store.kill()
                self.done += 1
                self._stop.wait(self._rng.uniform(0, min(_LONGEST_OUTAGE, seconds / 12)))
                self.store.start()
                print(f"the store was gone for {time.monotonic() - began:.0f} s", file=sys.stderr)
        except BaseException as error:
            self._failed = error


def finish_with(place: Place) -> list[str]:
    """Compact, merge, export and remove what a storm has left; returns what is wrong."""
    from embcache import Cache
    from embcache.tools.merge import merge_caches

    texts = [text_of(number) for number in sorted(place.noted())]
    space = place.space()
    deleted = space.check(fix=True).deleted
    rows = len(space)
    print(f"{deleted:,} duplicates deleted; {space.compact()}", file=sys.stderr)
    faults = []
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        exported = Path(folder) / "rows.parquet"
        space.export(exported)
        if pq.read_metadata(exported).num_rows != rows:
            faults.append(f"exported are {pq.read_metadata(exported).num_rows:,} of {rows:,} rows")
        merged = Path(folder) / "merged"
        print(merge_caches(place.cache, merged), file=sys.stderr)
        encode(open_encoder(place.model, str(merged), on_miss="raise"), texts)
    encode(open_encoder(place.model, place.cache, on_miss="raise"), texts)
    report = space.check()
    if not report.ok or report.duplicates or report.rows != rows:
        faults.append(f"after compaction: {report}")
    for one in Cache(place.cache).spaces():
        one.remove()
    if left := [one.name for one in Cache(place.cache).location.tables()]:
        faults.append(f"removed, and there: {left}")
    return faults
