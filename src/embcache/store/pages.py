"""Vectors straight out of a data file: where its pages lie, and which bytes of them are read.

Lance writes vectors of more than 128 bytes as they are, one behind the other, in a few pages of the
data file, and its file reader says where these lie. To read them there spares two copies, and
memory that is new for each batch: in a new process most of the time goes into page faults.

Nothing rests on it. What is not laid out like this is left to Lance (compressed or short vectors,
scores, fragments with deleted rows, files that cannot be read), and rows that fail their checksum
are read again by Lance before they count as damaged: a layout that is misunderstood costs time.

Rejected: mapping the files. It is as fast, and the system ends a process (SIGBUS) that reads on
where a disk fails, or a file was cut meanwhile; reading gives an error there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import lance
import numpy as np
from lance.file import LanceFileReader

from embcache.store import panics
from embcache.store.index import Positions
from embcache.store.lance_errors import is_of_lance
from embcache.store.manifests import data_path
from embcache.store.verify import Values

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**19
"""What is read at once, about: it stays in the processor's cache until it is checked and copied."""

_GAP_BYTES = 2**14  # between two wanted rows: to read over it costs no more than a second call


class Block(NamedTuple):
    """Some of the wanted rows, which are read into one piece of memory.

    Attributes:
        span: Which of the wanted rows.
        rows: How many rows are read: these, and what lies between neighbours.
        runs: What is read, one call each: offset in the file and size, in bytes.
        picked: Where the wanted rows are in what is read; None for all of it, in order.
    """

    span: slice
    rows: int
    runs: list[tuple[int, int]]
    picked: Positions | None


@dataclass(frozen=True, eq=False)
class VectorPages:
    """Where the vectors of a data file lie.

    Attributes:
        path: The file.
        dim: Components of a vector.
        starts: `(p + 1,) int64`, first row of each page, and the number of rows.
        offsets: `(p,) int64`, where each page begins in the file, in bytes.
    """

    path: Path
    dim: int
    starts: Positions
    offsets: Positions

    def blocks(self, rows: Positions) -> Iterator[Block]:
        """How wanted rows are read, a block at a time.

        Args:
            rows: `(n,) int64`, one or more rows of the file, sorted, none of them twice.
        """
        width = 4 * self.dim
        step = max(1, BLOCK_BYTES // width)
        page = np.searchsorted(self.starts, rows, side="right") - 1
        apart = np.diff(rows) > 1 + _GAP_BYTES // width
        apart |= (np.diff(page) > 0) | (np.diff(rows // step) > 0)
        first = np.concatenate(([0], np.flatnonzero(apart) + 1))
        bounds = np.concatenate((first, [len(rows)]))
        counts = rows[bounds[1:] - 1] - rows[first] + 1
        before = np.concatenate(([0], np.cumsum(counts)))
        offsets = self.offsets[page[first]] + (rows[first] - self.starts[page[first]]) * width
        runs = list(zip(offsets.tolist(), (counts * width).tolist(), strict=True))
        # Where each wanted row is in all that is read, as if that were one piece.
        place = rows + np.repeat(before[:-1] - rows[first], np.diff(bounds))
        edges = np.flatnonzero(np.diff(before[1:] // step)) + 1
        for start, stop in pairwise([0, *edges.tolist(), len(runs)]):
            span = slice(int(bounds[start]), int(bounds[stop]))
            count = int(before[stop] - before[start])
            whole = count == span.stop - span.start
            picked = None if whole else place[span] - before[start]
            yield Block(span, count, runs[start:stop], picked)

    def read(self, block: Block) -> Values:
        """The rows of a block, `(n, dim) float32`; not checked.

        Raises:
            OSError: The file is not there (any more), is too short, or cannot be read.
        """
        values = np.empty((block.rows, self.dim), np.float32)
        memory = values.reshape(-1).view(np.uint8).data
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if len(block.runs) > 1:  # else a disk would be asked for one piece after the other
                for offset, size in block.runs:
                    os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)
            at = 0
            for offset, size in block.runs:
                _read_into(memory[at : at + size], handle, offset)
                at += size
        finally:
            os.close(handle)
        return values if block.picked is None else values[block.picked]


def _read_into(memory: memoryview, handle: int, offset: int) -> None:
    while len(memory):
        got = os.preadv(handle, [memory], offset)
        if not got:
            raise OSError(f"ends {len(memory):,} bytes early")
        memory, offset = memory[got:], offset + got


def locate(fragment: lance.LanceFragment, table: Path, dim: int) -> VectorPages | None:
    """Find the vectors of a fragment in its data file.

    A millisecond a file, in native code that other Python threads do not wait for.

    Args:
        fragment: The fragment, of a table with vectors.
        table: The table's folder.
        dim: Components of the vectors.

    Returns:
        Where they lie; None where that is not known.
    """
    about = fragment.metadata
    if len(about.files) != 1 or about.deletion_file is not None or getattr(about, "overlays", None):
        return None
    path = data_path(table, about.files[0])
    try:
        with panics.off_screen():
            size, found = path.stat().st_size, LanceFileReader(str(path)).metadata()
            names, columns = found.schema.names, found.columns
            buffers = [page.buffers for page in columns[names.index("vector")].pages]
    except BaseException as error:
        if not is_of_lance(error):
            raise
        logger.debug("%s is left to Lance: %s", path, error)
        return None
    width = 4 * dim
    if len(columns) != len(names) or any(len(page) != 1 for page in buffers):
        return None
    pages = [page[0] for page in buffers]
    # Numbers of Python's: what a file says may be beyond those of NumPy.
    if any(page.size % width or page.position + page.size > size for page in pages):
        return None
    if sum(page.size for page in pages) != about.num_rows * width:
        return None  # compressed, or with lengths or nulls between
    starts = np.cumsum([0, *(page.size // width for page in pages)], dtype=np.int64)
    offsets = np.array([page.position for page in pages], np.int64)
    return VectorPages(path, dim, starts, offsets)
