"""Survey a table: read and check every row. Checking, merging and exporting build on this.

Fragment by fragment, so that one that cannot be read costs no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embcache.errors import CacheError, ConfigError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.store.index import run_starts, sorting_order
from embcache.store.location import READ_FIX, lance_errors
from embcache.store.rows import batch_keys
from embcache.store.schema import Layout, schema_layout, value_dim
from embcache.store.space import table_exists
from embcache.store.verify import key_fits, row_checksums

RowIds = npt.NDArray[np.uint64]
"""`(n,) uint64`: Lance's stable row ids."""

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20
_ERROR_CHARACTERS = 200  # Lance appends paths of its own source files
_NO_IDS = np.empty(0, np.uint64)


class Part(NamedTuple):
    """Some rows of a fragment, each checked.

    Attributes:
        batch: The columns that were asked for.
        keys: `(n, 2) uint64`.
        row_ids: `(n,) uint64`, stable row ids.
        damaged: `(n,) bool`.
    """

    batch: pa.RecordBatch
    keys: Keys
    row_ids: RowIds
    damaged: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Survey:
    """Every row of one version of a table. Memory: 24 bytes a row, 48 in the making.

    Attributes:
        rows: Rows of the table, those of unreadable files included.
        keys: `(n, 2) uint64`, of the intact rows; sorted.
        row_ids: `(n,) uint64`; of equal keys, the one that was committed first comes first.
        damaged: `(d,) uint64`, row ids.
        misfits: `(m,) uint64`, row ids.
        unverified: Intact rows whose key could not be computed again.
        unreadable: Data files that Lance cannot read, each with its error.
    """

    rows: int
    keys: Keys
    row_ids: RowIds
    damaged: RowIds
    misfits: RowIds
    unverified: int
    unreadable: tuple[str, ...]

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """`(n,) bool`, False for rows whose key an earlier row has."""
        return run_starts(self.keys)


def open_dataset(folder: Path) -> lance.LanceDataset:
    """The latest version of the table in a folder.

    Raises:
        ConfigError: There is none.
        CacheError: Lance cannot open it.
    """
    if not table_exists(folder):
        raise ConfigError(
            f"{str(folder)!r} is no space: there is no Lance table. Give the folder of one, "
            "<cache>/<name>.lance."
        )
    with lance_errors("Opening", folder, READ_FIX):
        return lance.dataset(str(folder))


def survey(dataset: lance.LanceDataset, identity: Identity | None = None) -> Survey:
    """Check every row of a dataset.

    Args:
        dataset: A space, pinned to a version.
        identity: What keys are computed again from; None leaves that out.
    """
    count = dataset.count_rows()
    keys, row_ids = np.empty((count, 2), np.uint64), np.empty(count, np.uint64)
    damaged, misfits = [_NO_IDS], [_NO_IDS]
    unreadable = []
    at, unverified = 0, 0
    for fragment in dataset.get_fragments():
        judged, error = _judge_fragment(dataset, fragment, identity)
        if error:
            unreadable.append(error)
        for batch in judged:
            stop = at + len(batch.row_ids)
            keys[at:stop], row_ids[at:stop] = batch.keys, batch.row_ids
            at = stop
            damaged.append(batch.damaged)
            misfits.append(batch.misfits)
            unverified += batch.unverified
    order = sorting_order(keys[:at], row_ids[:at])
    return Survey(
        count,
        keys[order],
        row_ids[order],
        np.concatenate(damaged),
        np.concatenate(misfits),
        unverified,
        tuple(unreadable),
    )


class _Judged(NamedTuple):
    """What a `Survey` needs of one batch."""

    keys: Keys
    row_ids: RowIds
    damaged: RowIds
    misfits: RowIds
    unverified: int


def _judge_fragment(
    dataset: lance.LanceDataset, fragment: lance.LanceFragment, identity: Identity | None
) -> tuple[list[_Judged], str | None]:
    """A fragment's batches, as far as it can be read; and the error, if that is not to its end."""
    texts = [name for name in schema_layout(dataset.schema).texts if name in dataset.schema.names]
    if identity is None or not texts:
        return _judge_columns(dataset, fragment, None, [])
    judged, error = _judge_columns(dataset, fragment, identity, texts)
    if error is None:
        return judged, None
    # One byte that is no UTF-8 fails a whole batch, and its vectors may all be intact.
    judged, worse = _judge_columns(dataset, fragment, identity, [])
    return judged, worse or f"texts in {error}"


def _judge_columns(
    dataset: lance.LanceDataset,
    fragment: lance.LanceFragment,
    identity: Identity | None,
    texts: list[str],
) -> tuple[list[_Judged], str | None]:
    judged: list[_Judged] = []
    try:
        for part in read_fragment(dataset, fragment, texts):
            judged.append(_judge(part, schema_layout(dataset.schema), identity))
    except CacheError as error:
        return judged, str(error)
    return judged, None


def _judge(part: Part, layout: Layout, identity: Identity | None) -> _Judged:
    fits = np.full(len(part.keys), -1, np.int8)
    if identity is not None:
        fits = key_fits(part.batch, part.keys, layout, identity)
    good = ~part.damaged & (fits != 0)
    return _Judged(
        part.keys[good],
        part.row_ids[good],
        part.row_ids[part.damaged],
        part.row_ids[~part.damaged & (fits == 0)],
        int((good & (fits < 0)).sum()),
    )


def read_fragment(
    dataset: lance.LanceDataset, fragment: lance.LanceFragment, columns: list[str]
) -> Iterator[Part]:
    """Read a fragment by batches, its rows checked.

    Args:
        dataset: A space.
        fragment: One of its fragments.
        columns: Which columns the batches need beside key, value and checksum.

    Raises:
        CacheError: Lance cannot read it; the message begins with its files' names.
    """
    value, dim = schema_layout(dataset.schema).value, value_dim(dataset.schema)
    names = list(dict.fromkeys(["key", value, "checksum", *columns]))
    try:
        scanner = dataset.scanner(
            columns=names,
            with_row_id=True,
            fragments=[fragment],
            batch_size=max(1, min(_BATCH_ROWS, _BATCH_BYTES // (4 * dim))),
            scan_in_order=True,
            batch_readahead=2,
            fragment_readahead=1,
        )
        for batch in scanner.to_batches():
            yield _check_batch(batch, value, dim)
    except BaseException as error:  # PanicException of Lance's native code is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        files = ", ".join(f"data/{Path(file.path).name}" for file in fragment.metadata.files)
        said = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
        raise CacheError(f"{files} ({fragment.metadata.num_rows:,} rows): {said}") from error


def batch_values(batch: pa.RecordBatch | pa.Table, value: str) -> npt.NDArray[np.float32]:
    """Vectors, `(n, dim) float32`, or scores, `(n, 1)`; a null component becomes NaN."""
    column = batch.column(value)
    flat = column if value == "score" else column.flatten()
    if isinstance(column, pa.ChunkedArray) and value != "score":
        flat = pa.chunked_array([c.flatten() for c in column.chunks], column.type.value_type)
    matrix = flat.to_numpy(zero_copy_only=False) if isinstance(flat, pa.Array) else flat.to_numpy()
    rows: npt.NDArray[np.float32] = matrix.reshape(len(column), -1)
    return rows


def damaged_rows(
    keys: Keys, values: npt.NDArray[np.float32], checksums: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """`(n,) bool`, True where the checksum fails, or there is NaN or infinity."""
    finite = np.isfinite(values).all(axis=1)
    return np.asarray((row_checksums(keys, values) != checksums) | ~finite)


def _check_batch(batch: pa.RecordBatch, value: str, dim: int) -> Part:
    keys = batch_keys(batch)
    values = batch_values(batch, value).reshape(-1, dim)
    damaged = damaged_rows(keys, values, batch.column("checksum").to_numpy())
    return Part(batch, keys, batch.column("_rowid").to_numpy(), damaged)
