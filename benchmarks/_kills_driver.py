"""The driver of a job of `cluster_kills.py`: a process that is killed, and started again.

It gets an `Order` as JSON, and says in a file what `ClusterWarmer` says while it runs.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from _kills_engine import noting_encoder, text_of

from embcache.cluster import ClusterStats, ClusterWarmer
from embcache.errors import EmbcacheError
from embcache.warm import Columns, TextBatch
from embcache.warm.parts import parts

FAILED = 3
"""Exit status after an error of embcache's own; any other error has Python's, 1."""

_TWICE = 10  # every tenth text of the files is also among the driver's own: somebody waits for it
_BATCH = 500


@dataclass(frozen=True)
class Order:
    """What a driver is to do.

    Attributes:
        name: Of its files in `folder`, which no other one has.
        folder: Has the model, the texts' files and the notes.
        cache: The cache's directory, or its URL.
        address: Of a cluster; None for a Ray of its own.
        replicas: How many.
        texts: How many texts there are; the files hold the first half.
        seconds_a_text: What the engine takes.
    """

    name: str
    folder: str
    cache: str
    address: str | None
    replicas: int
    texts: int
    seconds_a_text: float

    @property
    def status(self) -> Path:
        """File with what was done so far, as JSON, see `_said`."""
        return Path(self.folder, f"status-{self.name}")

    @property
    def log(self) -> Path:
        """File with what engines embedded; of all jobs of a trial."""
        return Path(self.folder, "embedded")

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return Path(self.folder, "model")


def write_texts(folder: Path, texts: int, files: int = 3) -> None:
    """Write the first half of the texts to files, as `Order` wants them."""
    for number in range(files):
        lines = [text_of(one) for one in range(number, texts // 2, files)]
        (folder / f"texts-{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _own_texts(order: Order) -> Iterator[TextBatch]:
    numbers = [*range(order.texts // 2, order.texts), *range(0, order.texts // 2, _TWICE)]
    for at in range(0, len(numbers), _BATCH):
        yield TextBatch([text_of(one) for one in numbers[at : at + _BATCH]], "driver")


def warm(order: Order) -> ClusterStats:
    """Warm with files that the cluster reads, and texts that only this process has."""

    def advance(stats: ClusterStats) -> None:
        _write(order, {"stats": asdict(stats)})

    encoder = noting_encoder(order.model, order.cache, order.log, order.seconds_a_text)
    warmer = ClusterWarmer(encoder, order.replicas, order.address, advance)
    files = parts("txt", [str(Path(order.folder, "texts-*.txt"))], Columns())
    return warmer.run(files, _own_texts(order), order.texts)


def _write(order: Order, said: dict[str, object]) -> None:
    """Replace the status at once, so that who reads it never sees half of it."""
    new = order.status.with_suffix(".new")
    new.write_text(json.dumps(said), encoding="utf-8")
    new.replace(order.status)


def main() -> int:
    """Warm; returns the exit status."""
    order = Order(**json.loads(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        stats = warm(order)
    except EmbcacheError as error:
        _write(order, {"error": type(error).__name__, "message": str(error)})
        return FAILED
    _write(order, {"stats": asdict(stats), "through": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
