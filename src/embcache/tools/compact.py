"""Compact a space: many small files into few large ones, and the disk of deleted rows freed."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from embcache.store.location import WRITE_FIX, lance_errors
from embcache.tools.survey import open_dataset

_ATTEMPTS = 5
_CONFLICT = "commit conflict"  # in Lance's message, where another process committed meanwhile


@dataclass(frozen=True)
class CompactReport:
    """What `compact_space` did.

    Attributes:
        path: Folder of the space.
        fragments_before: Fragments (data files, mostly) of the latest version, before.
        fragments_after: The same, after.
        bytes_before: Bytes of all files in the folder, old versions included, before.
        bytes_after: The same, after.
    """

    path: Path
    fragments_before: int
    fragments_after: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        text = (
            f"{self.path.name}: {self.fragments_before:,} -> {self.fragments_after:,} fragments, "
            f"{self.bytes_before / 1e6:,.1f} -> {self.bytes_after / 1e6:,.1f} MB"
        )
        if self.bytes_after > self.bytes_before:
            text += " (the old files stay for who reads them; compact again after an hour)"
        return text


def compact_space(
    path: str | os.PathLike[str], *, older_than: timedelta = timedelta(hours=1)
) -> CompactReport:
    """Rewrite small fragments into large ones, and remove files that nothing needs any more.

    Other processes may read and write meanwhile. Rows keep their stable row ids: of equal keys, the
    row that was committed first still counts.

    Args:
        path: Folder of the space, `<cache>/<name>.lance`.
        older_than: Versions older than this are removed, with the files that only they use. Until
            then readers that opened them go on, and the bytes are not freed: right after a
            compaction the folder is larger than before. Zero frees them at once, where no other
            process has the space open; one that has then fails to read.

    Returns:
        Fragments and bytes, before and after. What a killed writer left behind is removed once it
        is seven days old: before, Lance cannot tell it from a write in progress.

    Raises:
        ConfigError: There is no table.
        CacheError: Lance cannot read or write it.
    """
    folder = Path(path)
    fragments, size = _fragments(folder), _size(folder)
    with lance_errors("Compacting", folder, WRITE_FIX):
        for attempt in range(_ATTEMPTS):
            try:
                _optimize(folder, older_than)
                break
            except RuntimeError as error:
                # Another process deleted rows, or compacted, at the same time. Appends never
                # conflict, so a later attempt goes through.
                if _CONFLICT not in str(error) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
    return CompactReport(folder, fragments, _fragments(folder), size, _size(folder))


def _optimize(folder: Path, older_than: timedelta) -> None:
    import lancedb

    connection = lancedb.connect(str(folder.parent), read_consistency_interval=timedelta(0))
    table = connection.open_table(folder.name.removesuffix(".lance"))
    with warnings.catch_warnings():  # zero is what the caller asked for, and was told about
        warnings.filterwarnings("ignore", r"optimize\(cleanup_older_than=0\)", UserWarning)
        table.optimize(cleanup_older_than=older_than)


def _fragments(folder: Path) -> int:
    return len(open_dataset(folder).get_fragments())


def _size(folder: Path) -> int:
    """Bytes of the files there, those that another process removes meanwhile left out."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total
