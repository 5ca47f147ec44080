"""Compact a space: many small files into few large ones, and the disk of deleted rows freed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from embcache.store import Location, Space
from embcache.store.compaction import remove_left_behind
from embcache.store.lance_errors import WRITE_FIX, despite_conflicts, lance_errors
from embcache.store.locks import sole_compactor

_ATTEMPTS = 5


@dataclass(frozen=True)
class CompactReport:
    """What `compact_space` did.

    Attributes:
        location: Folder of the space.
        fragments_before: Fragments (data files, mostly) of the latest version, before.
        fragments_after: The same, after.
        bytes_before: Bytes of all files in the folder, old versions included, before.
        bytes_after: The same, after.
    """

    location: Location
    fragments_before: int
    fragments_after: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        text = (
            f"{self.location.name}: {self.fragments_before:,} -> {self.fragments_after:,} "
            f"fragments, {self.bytes_before / 1e6:,.1f} -> {self.bytes_after / 1e6:,.1f} MB"
        )
        if self.bytes_after > self.bytes_before:
            text += " (the old files stay for who reads them; compact again after an hour)"
        return text


def compact_space(space: Space, *, older_than: timedelta = timedelta(hours=1)) -> CompactReport:
    """Rewrite small fragments into large ones, and remove files that nothing needs any more.

    Encoders do this by themselves in the background, when it pays; this does all of it at once.
    Other processes may read and write meanwhile. Rows keep their stable row ids: of equal keys, the
    row that was committed first still counts.

    Args:
        space: The space.
        older_than: Versions older than this are removed, with the files that only they use. Until
            then readers that opened them go on, and the bytes are not freed: right after a
            compaction the folder is larger than before. Zero frees them at once, where no other
            process has the space open; one that has then fails to read.

    Returns:
        Fragments and bytes, before and after. What killed processes left behind is removed once it
        is an hour old.

    Raises:
        ConfigError: There is no table.
        CacheError: Lance cannot read or write it.
    """
    fragments, size = len(space.open().fragments), space.location.size()
    _compact(space, older_than)
    if space.canaries.location.has_table():
        _compact(space.canaries, older_than)
    after = len(space.open().fragments)
    return CompactReport(space.location, fragments, after, size, space.location.size())


def _compact(space: Space, older_than: timedelta) -> None:
    with sole_compactor(space.location.folder, wait=True):  # a writer's own takes a second
        _optimize(space, older_than)
        remove_left_behind(space.location)


def _optimize(space: Space, older_than: timedelta) -> None:
    with lance_errors("Compacting", space.location, WRITE_FIX):
        # Another process deleted rows, or compacted, at the same time. Appends never conflict, so a
        # later attempt goes through.
        despite_conflicts(lambda: space.optimize(older_than), _ATTEMPTS)
