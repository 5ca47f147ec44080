"""Compact a space: each key once, small files merged into large ones, unused disk freed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from embcache.store import Location, Space
from embcache.store.compaction import remove_left_behind
from embcache.store.lance_errors import WRITE_FIX, despite_conflicts, lance_errors
from embcache.store.leftovers import AGE
from embcache.store.locks import sole_compactor
from embcache.tools.duplicates import remove_duplicates

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
        duplicates: Rows, canaries' included, that were removed because another row has their key.
    """

    location: Location
    fragments_before: int
    fragments_after: int
    bytes_before: int
    bytes_after: int
    duplicates: int = 0

    def __str__(self) -> str:
        removed = f"{self.duplicates:,} duplicates removed, " if self.duplicates else ""
        text = (
            f"{self.location.name}: {self.fragments_before:,} -> {self.fragments_after:,} "
            f"fragments, {removed}"
            f"{self.bytes_before / 1e6:,.1f} -> {self.bytes_after / 1e6:,.1f} MB"
        )
        if self.bytes_after > self.bytes_before:
            text += " (the old files stay for who reads them; compact again after an hour)"
        return text


def compact_space(space: Space, *, older_than: timedelta = timedelta(hours=1)) -> CompactReport:
    """Remove duplicates, merge small fragments, and remove files that nothing needs any more.

    Encoders merge by themselves in the background, when it pays; this does all of it at once, and
    duplicates go only here: rows of one key, which processes leave that encode the same text at the
    same time. The one that was committed first stays, of those that are sound, see
    `embcache.tools.duplicates`. Other processes may read and write meanwhile. Rows keep their
    stable row ids.

    Args:
        space: The space.
        older_than: Versions older than this are removed, with the files that only they use. Until
            then readers that opened them go on, and the bytes are not freed: right after a
            compaction the folder is larger than before. Zero frees them at once, where no other
            process has the space open; one that has then fails to read. With zero, what killed
            processes left behind is removed at once, too, otherwise when it is an hour old: it may
            be what another process is writing.

    Returns:
        Fragments and bytes, before and after, and how many duplicates were removed.

    Raises:
        ConfigError: There is no table.
        CacheError: Lance cannot read or write it.
    """
    fragments, size = len(space.open().fragments), space.location.size()
    duplicates = _compact(space, older_than)
    if space.canaries.location.has_table():
        duplicates += _compact(space.canaries, older_than)
    after = len(space.open().fragments)
    return CompactReport(space.location, fragments, after, size, space.location.size(), duplicates)


def _compact(space: Space, older_than: timedelta) -> int:
    """Compact one table; returns how many duplicates it had."""
    with sole_compactor(space.location.folder, wait=True):  # a writer's own takes a second
        duplicates = remove_duplicates(space.location)  # first: merged fragments are without them
        _optimize(space, older_than)
        remove_left_behind(space.location, AGE if older_than else older_than)
    return duplicates


def _optimize(space: Space, older_than: timedelta) -> None:
    with lance_errors("Compacting", space.location, WRITE_FIX):
        # Another process deleted rows, or compacted, at the same time. Appends never conflict, so a
        # later attempt goes through.
        despite_conflicts(lambda: space.optimize(older_than), _ATTEMPTS)
