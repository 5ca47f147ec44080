"""The key index of a large space, kept on disk: opened at once, and shared by all processes.

An Arrow file in the table's folder, mapped into memory. It says of which fragments its keys are, by
their marks; what the table has beyond these is read from the table. Nothing rests on it: a row is
checked with the key that was asked for, and a file that is damaged, or of another table, is passed
over and made anew.

Measured with 10 million keys, on 2 cores: without it, opening takes 2.7 s and 290 MB in each
process; with it 0.03 to 0.08 s, and 260 MB of pages that all processes share. 100,000 look-ups take
33 ms without and 30 with it. Rejected: Lance's own scalar index (a B-tree, 207 MB, made in 6.9 s),
with which 1,000 look-ups take 51 ms, against 0.3; and mapping a file that another host may remove,
where the system ends a process that reads on (SIGBUS): there it is read.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from embcache.store.hosts import file_system
from embcache.store.index import KeyIndex, KeyParts, Positions, Words
from embcache.store.leftovers import CREATING

logger = logging.getLogger(__name__)

FILE = "_keys.arrow"
"""Its name, in the table's folder."""

LEAST_KEYS = 2**18
"""From which on it pays: half a million keys are opened in 3 ms instead of 35. Fewer than these are
read before a call's texts are hashed."""

Marks = list[tuple[object, ...]]
"""Fragments in scan order, see `embcache.store.snapshot.Mark`."""

_MARKS, _CHECKSUM = b"embcache:fragments", b"embcache:checksum"
_SCHEMA = pa.schema([("head", pa.uint64()), ("tail", pa.uint64()), ("position", pa.int64())])
_MAGIC_BYTES = 8  # what an Arrow file has before the stream of its messages
_MOST_BYTES, _MOST_BYTES_A_ROW = 2**20, 64  # a key takes 24, a fragment's marks some 100
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay"})


def save(table: Path, marks: Sequence[tuple[object, ...]], index: KeyParts) -> None:
    """Keep an index, in place of an older one.

    Args:
        table: The table's folder.
        marks: Fragments whose keys the index has, all of them.
        index: Their keys.

    Raises:
        OSError: The file system refuses.
    """
    index = KeyParts(tuple(part.whole() for part in index.parts))
    written = json.dumps(marks).encode()
    checksum = _checksum(written, index)
    schema = _SCHEMA.with_metadata({_MARKS: written, _CHECKSUM: checksum})
    handle, name = tempfile.mkstemp(prefix=CREATING, dir=table)
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for part in index.parts:
                columns = [pa.array(words) for words in _words(part)]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        os.chmod(name, os.stat(table).st_mode & 0o666)  # as readable as the table is
        os.replace(name, table / FILE)
    except BaseException:
        os.unlink(name)
        raise


def load(table: Path, rows: int) -> tuple[Marks, KeyParts] | None:
    """The index that is kept.

    Args:
        table: The table's folder.
        rows: How many the table has: a file that is too large for them is not read.

    Returns:
        Of which fragments it is, and their keys; None where there is none that can be used.
    """
    path = table / FILE
    try:
        size, most = path.stat().st_size, _MOST_BYTES + _MOST_BYTES_A_ROW * rows
        if size > most:
            raise ValueError(f"it has {size:,} bytes, for {rows:,} rows")
        with pa.memory_map(str(path)) if _is_local(path) else pa.OSFile(str(path)) as source:
            source.seek(_MAGIC_BYTES)
            first, *batches = pa.ipc.MessageReader.open_stream(source)
        schema = pa.ipc.read_schema(first)
        if not schema.equals(_SCHEMA):
            raise ValueError("its columns are others")
        metadata = schema.metadata or {}
        index = KeyParts(tuple(_part(batch) for batch in batches))
        if metadata.get(_CHECKSUM) != _checksum(metadata[_MARKS], index):
            raise ValueError("its checksum is another")
        if any((part.positions < 0).any() for part in index.parts):
            raise ValueError("it has rows before the first one")
        marks = [tuple(mark) for mark in json.loads(metadata[_MARKS])]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        logger.info("%s is not used, and made anew: %s", path, error)
        return None
    return marks, index


def _part(batch: pa.ipc.Message) -> KeyIndex:
    """Of a batch as `save` writes it: three columns, one behind the other.

    Arrow would believe lengths that the buffers do not have, and take apart what is compressed,
    to whatever size.
    """
    heads, tails, positions = np.frombuffer(batch.body or b"", np.uint64).reshape(3, -1)
    return KeyIndex(heads, tails, positions.view(np.int64))


def _words(part: KeyIndex) -> tuple[Words | Positions, ...]:
    return part.heads, part.tails, part.positions


def _checksum(marks: bytes, index: KeyParts) -> bytes:
    sums = xxhash.xxh3_64(marks)
    for part in index.parts:
        for words in _words(part):
            sums.update(words.view(np.uint8).data)
    return sums.hexdigest().encode()


def _is_local(path: Path) -> bool:
    """Whether the file is on this machine, as far as is known: no other host removes it."""
    return file_system(path) in _LOCAL
