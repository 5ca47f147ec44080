"""Import vectors that were computed elsewhere: exported files, and mteb's NumpyCache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embcache.errors import CacheError, CacheFormatError, ConfigError, shown
from embcache.identity.home import user_path, working_directory
from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import VECTORS, Database, Location, Rows
from embcache.store.schema import (
    SpaceMetadata,
    check_columns,
    embcache_version,
    is_space,
    read_metadata,
    schema_layout,
    space_schema,
    value_dim,
)
from embcache.store.verify import key_fits, verify
from embcache.tools.append import Appender, target_space

logger = logging.getLogger(__name__)

_BATCH_ROWS = 4096
_MOST_COMPONENTS = 2**20  # of a vector; models have some thousand


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes:
        location: Folder of the space.
        rows: Rows (for NumpyCache: different texts) that were read.
        added: Rows that the space had not, and has now.
        present: Rows that it had before.
        refused: Rows that fail their checksum, are not finite, or whose key is not that of their
            text.
        unknown: Texts that the NumpyCache does not hold.
    """

    location: Location
    rows: int
    added: int
    present: int
    refused: int
    unknown: int = 0

    def __str__(self) -> str:
        parts = [f"{self.added:,} of {self.rows:,} rows added", f"{self.present:,} there already"]
        if self.refused:
            parts.append(f"{self.refused:,} refused (checksum, key or not finite)")
        if self.unknown:
            parts.append(f"{self.unknown:,} texts not in the folder")
        return f"{self.location.name}: {', '.join(parts)}"


def import_file(
    source: str | os.PathLike[str],
    cache: str | os.PathLike[str] | Location,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> ImportReport:
    """Import a `.parquet` or `.arrow` file that `export_space` wrote.

    Each row's checksum, and its key where the text is there, are verified; rows that fail are left
    out. Identity and all columns are the exported space's.

    Args:
        source: The file.
        cache: The cache to add to; made if need be.
        storage_options: What the store of a URL needs to be opened; a Location has its own.

    Raises:
        ConfigError: The ending is unknown, the file is float16, or of `LanceCache`.
        CacheFormatError: Its schema metadata is not a space's.
        CacheError: It cannot be read, or the cache not be written.
    """
    file = user_path(source, "source")
    if not file.is_file():
        raise CacheError(f"{file} is no file (working directory: {working_directory()}).")
    with _read_errors(file):
        schema, batches = _open(file)
        if not is_space(schema):
            raise CacheFormatError(
                f"{file} does not say what its vectors are of: no `export` of embcache wrote it. "
                "Give a .parquet or .arrow file that one did."
            )
        metadata = read_metadata(schema, str(file))
        layout = schema_layout(schema)
        _check_schema(file, schema, metadata)
        space = target_space(Database(cache, storage_options, writable=True), schema, file)
        appender = Appender(partial(space.add_arrow, dim=value_dim(schema)))
        rows = refused = 0
        for batch in batches:
            batch.validate(full=True)  # Arrow would read where the file says, beyond its end too
            part = verify(batch, layout)
            bad = part.damaged | (key_fits(batch, part.keys, layout, metadata.identity) == 0)
            rows, refused = rows + len(bad), refused + int(bad.sum())
            appender.add(batch.filter(pa.array(~bad)) if bad.any() else batch)
        appender.flush()
    _warn(refused, file)
    return ImportReport(
        space.location, rows, appender.added, rows - refused - appender.added, refused
    )


def import_numpy_cache(
    folder: str | os.PathLike[str],
    cache: str | os.PathLike[str] | Location,
    identity: Identity,
    texts: Iterable[str],
    *,
    prompt: str = "",
    model: str | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> ImportReport:
    """Import vectors of mteb's `NumpyCache`, which keeps hashes in the texts' place.

    That they are of this model, dtype and prompt only the caller can know: the folder says nothing
    of it. Vectors of anything else would be wrong hits.

    Args:
        folder: With `vectors.npy`, `index.json` and `dimension`.
        cache: The cache to add to; made if need be.
        identity: What computed the vectors.
        texts: What to look for; read once, and in memory a batch at a time.
        prompt: What was put in front of each text.
        model: Name for a new table; the identity's unless given.
        storage_options: What the store of a URL needs to be opened; a Location has its own.

    Raises:
        ConfigError: It is no such folder.
        CacheError: The cache cannot be written.
        InputError: A text has no UTF-8 form.
    """
    where = user_path(folder, "folder")
    index, vectors = _numpy_cache(where)
    metadata = SpaceMetadata(
        identity, model or identity.model, "unknown (mteb NumpyCache)", embcache_version()
    )
    schema = space_schema(VECTORS, vectors.shape[1], metadata, store_text=True)
    space = target_space(Database(cache, storage_options, writable=True), schema, where)
    appender = Appender(partial(space.add_arrow, dim=vectors.shape[1]))
    rows = refused = unknown = 0
    every = iter(texts)
    while batch := list(dict.fromkeys(islice(every, _BATCH_ROWS))):
        keys = text_keys(identity.to_bytes(), prompt, batch)
        spots = np.array([index.get(_hash(text), -1) for text in batch], np.int64)
        inside = spots < len(vectors)
        there = np.flatnonzero((spots >= 0) & inside)
        values = np.array(vectors[spots[there]])
        good = np.isfinite(values).all(axis=1)
        rows, unknown = rows + len(batch), unknown + int((spots < 0).sum())
        refused += int((~inside).sum()) + int((~good).sum())
        kept = there[good]
        columns = {"text": [batch[row] for row in kept], "prompt": prompt}
        table = Rows(keys[kept], values[good], columns).to_arrow(schema, store_text=True)
        for part in table.to_batches():
            appender.add(part)
    appender.flush()
    _warn(refused, where)
    present = rows - unknown - refused - appender.added
    return ImportReport(space.location, rows, appender.added, present, refused, unknown)


def _open(file: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if file.suffix == ".parquet":
        parquet = pq.ParquetFile(str(file))
        return parquet.schema_arrow, parquet.iter_batches(_BATCH_ROWS)
    if file.suffix == ".arrow":
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    raise ConfigError(
        f"{file} ends in neither .parquet nor .arrow. Give such a file of `export`: an .npy has no "
        "keys, and does not say what its vectors are of."
    )


def _check_schema(file: Path, schema: pa.Schema, metadata: SpaceMetadata) -> None:
    value = schema_layout(schema).value
    missing = {"key", value, "checksum"} - set(schema.names)
    if missing:
        raise CacheFormatError(
            f"{file} has no column {', '.join(sorted(missing))}. Give a file that `export` wrote."
        )
    if schema.names.count(value) == 1 and "halffloat" in str(schema.field(value).type):
        raise ConfigError(
            f"{file} holds float16 values: they are rounded, and not the bits of an engine that "
            f"computes in {metadata.identity.dtype}. Import a float32 export."
        )
    check_columns(schema, metadata, str(file), "Give the file as `export` wrote it.")


def _numpy_cache(folder: Path) -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    """Which row each hash has, and all rows; the files may be anybody's, so nothing is believed."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        dim = int((folder / "dimension").read_text(encoding="utf-8"))
        file = folder / "vectors.npy"  # not in NumPy's format, whatever its name says
        if not isinstance(index, dict) or not all(map(_is_row, index.values())):
            raise ValueError("index.json does not map hashes to numbers of rows")
        if not 0 < dim <= _MOST_COMPONENTS:
            raise ValueError(f"a dimension of {shown(dim)}")
        shape = (file.stat().st_size // (4 * dim), dim)
        vectors = np.memmap(file, dtype="<f4", mode="r", shape=shape)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{folder} is no NumpyCache of mteb's: {error}. Give a folder with vectors.npy, "
            "index.json and dimension; mteb makes one for each task and prompt type."
        ) from error
    return index, vectors


def _is_row(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _warn(refused: int, source: Path) -> None:
    if refused:
        logger.warning(
            "%d rows of %s are left out: checksum, key or finiteness fails.", refused, source
        )


@contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    """Turn what Arrow raises on a damaged or missing file into `CacheError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise CacheError(
            f"{file} cannot be read: {error}. What was imported of it before is safe."
        ) from error
