"""Reading vectors or scores out of one version of a table, by position, with every row checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.identity.keys import Keys
from embcache.store.index import Positions
from embcache.store.schema import schema_layout, value_dim
from embcache.store.verify import row_checksums

# Measured on 50,000 rows of 384 components: a scan of everything takes 12 ms, takes of a tenth
# 29 ms, of a hundredth 5 ms. From a tenth of a fragment on, the fragment is scanned.
_SCAN_FROM_FRACTION = 0.1
_BATCH_BYTES = 4 * 2**20
_TAKE_THREADS = 2

Vectors = npt.NDArray[np.float32]
Narrow = Callable[[Vectors], Vectors]


class Reader:
    """Reads rows of a pinned dataset version.

    Positions count rows in scan order. That a position still means the row that the index saw is
    not taken on trust: the checksum covers the key that was asked for.
    """

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self._value = schema_layout(dataset.schema).value
        self._dim = dim = value_dim(dataset.schema)
        self._fragments = dataset.get_fragments()
        sizes = [fragment.metadata.num_rows for fragment in self._fragments]
        self._starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._batch_rows = max(1, min(4096, _BATCH_BYTES // (4 * dim)))

    def read(
        self,
        positions: Positions,
        keys: Keys,
        out: Vectors,
        rows: npt.NDArray[np.int64],
        narrow: Narrow | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Copy vectors (scores, as vectors of one component) into the caller's matrix.

        Args:
            positions: `(n,) int64`, where the rows lie.
            keys: `(n, 2) uint64`, whose rows they should be.
            out: `(m, dim) float32`, filled in place: row `rows[i]` gets the vector at
                `positions[i]`. Rows that fail are left undefined.
            rows: `(n,) int64`.
            narrow: Makes what goes into `out` of a batch of full vectors.

        Returns:
            `(n,) bool`, True where checksum or finiteness failed.
        """
        order = np.argsort(positions, kind="stable")
        positions, keys, rows = positions[order], keys[order], rows[order]
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        wanted = np.bincount(owner, minlength=len(self._fragments))
        scanned = wanted >= _SCAN_FROM_FRACTION * np.diff(self._starts)
        failed = np.zeros(len(positions), bool)
        for select, source in (
            (np.flatnonzero(scanned[owner]), self._scan),
            (np.flatnonzero(~scanned[owner]), self._take),
        ):
            for span, vectors, sums in source(positions[select], scanned):
                at = select[span]
                out[rows[at]] = vectors if narrow is None else narrow(vectors)
                failed[at] = (row_checksums(keys[at], vectors) != sums) | _not_finite(vectors)
        result = np.empty(len(order), bool)
        result[order] = failed
        return result

    def _scan(
        self, positions: Positions, scanned: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[slice, Vectors, npt.NDArray[np.uint64]]]:
        """Scan the chosen fragments in order and pick the wanted rows out of each batch."""
        if not len(positions):
            return
        chosen = np.flatnonzero(scanned)
        sizes = np.diff(self._starts)
        # Position within the scan = position in the table less the rows of skipped fragments.
        skipped = np.cumsum(np.where(scanned, 0, sizes))
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        local = positions - skipped[owner]
        scanner = self._dataset.scanner(
            columns=[self._value, "checksum"],
            batch_size=self._batch_rows,
            fragments=[self._fragments[i] for i in chosen],
            scan_in_order=True,
            batch_readahead=2,  # memory that is used again faults no pages in
            fragment_readahead=1,
        )
        start = 0
        for batch in scanner.to_batches():
            stop = start + batch.num_rows
            first, last = np.searchsorted(local, (start, stop))
            if last > first:
                vectors, sums = self._columns(batch)
                picked = local[first:last] - start
                if not np.array_equal(picked, np.arange(batch.num_rows)):  # else spare the copy
                    vectors, sums = vectors[picked], sums[picked]
                yield slice(first, last), vectors, sums
            start = stop

    def _take(
        self, positions: Positions, scanned: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[slice, Vectors, npt.NDArray[np.uint64]]]:
        """Take scattered rows, several calls at a time."""
        spans = [
            slice(start, min(start + self._batch_rows, len(positions)))
            for start in range(0, len(positions), self._batch_rows)
        ]

        def take(span: slice) -> pa.Table:
            return self._dataset.take(positions[span], columns=[self._value, "checksum"])

        with ThreadPoolExecutor(_TAKE_THREADS) as pool:
            # A few calls ahead of the consumer, not all of them: memory stays bounded.
            for at in range(0, len(spans), 4 * _TAKE_THREADS):
                group = spans[at : at + 4 * _TAKE_THREADS]
                for span, table in zip(group, pool.map(take, group), strict=True):
                    if table.num_rows != span.stop - span.start:
                        raise ValueError(
                            f"Lance returned {table.num_rows} of {span.stop - span.start} rows"
                        )
                    batch = table.combine_chunks().to_batches()[0]
                    yield span, *self._columns(batch)

    def _columns(self, batch: pa.RecordBatch) -> tuple[Vectors, npt.NDArray[np.uint64]]:
        column = batch.column(self._value)
        flat = column if self._value == "score" else column.flatten()
        return flat.to_numpy(zero_copy_only=True).reshape(-1, self._dim), batch.column(
            "checksum"
        ).to_numpy()


def _not_finite(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Rows with NaN or infinity, which embcache never writes but another tool may have."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(vectors.sum()):  # either one would show in the sum, 8 times cheaper
            return np.zeros(len(vectors), bool)
    return np.asarray(~np.isfinite(vectors).all(axis=1))
