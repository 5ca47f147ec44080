"""Repair a space in place: what can still be read stays, the rest becomes a miss.

Everything is a commit to the same table, or a manifest that is set aside: readers of older versions
go on, writers meet one more version, and a kill at any moment leaves what the next repair mends.
Writing a new table and exchanging the folders was rejected: a writer that holds the old table
would commit its version into the new one, and a large space would be copied for one file.

1. Manifests of versions that cannot be used are moved to a hidden folder beside the table, so that
   the newest usable version is the newest one.
2. Rows that it lacks, and that some data file here still holds, are appended: where a manifest was
   lost, those of data files that no version names; what can be read of its damaged files; and, of
   older versions, the very rows (by row id) that are damaged in it.
3. The fragments that cannot be read are deleted as a whole, then rows that are damaged, have the
   key of another text, or are duplicates.

Rows that come back are checked like all others: checksum, identity, and key, as far as texts are
stored. Deletions are lost only where what says them is: with the manifest that is set aside, or
with a file of `_deletions`. Such rows are there again if no compaction has removed them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embcache.errors import CacheError, NewerFormatError
from embcache.store import Location, Space
from embcache.store.aside import Aside, has_left
from embcache.store.data_file import DataFile
from embcache.store.index import run_starts
from embcache.store.lance_errors import is_conflict
from embcache.store.locks import only_one
from embcache.store.manifests import data_paths, fingerprint_in, manifest, versions
from embcache.store.salvage import pass_by
from embcache.store.versions import (
    Versions,
    can_be_opened,
    read_versions,
)
from embcache.tools.recover import Recovery, open_files, paths_of
from embcache.tools.verified_rows import RowIds, Survey, survey

_NOT_IN_A_STORE = (
    "a manifest cannot be read, and in a store, where there are no locks, nothing is set aside: "
    "copy the cache to a disk, mend it there, and copy it back when nothing writes to it"
)
_ROUNDS = 5  # one for manifests, one for rows, and where others commit what a round did not see


@dataclass(frozen=True)
class Condition:
    """What state a space is in.

    Attributes:
        location: Its folder.
        versions: Of its table.
        found: Of the rows of the newest usable version; None if there is none.
        refused: Why it is not for this embcache to mend, or ""; then nothing is touched.
    """

    location: Location
    versions: Versions
    found: Survey | None
    refused: str = ""

    @property
    def sound(self) -> bool:
        """Whether every version can be used, and every row of the newest one."""
        found = self.found
        rows = found is not None and not (
            found.broken or len(found.damaged) or len(found.misfits) or found.unreadable
        )
        return rows and not self.versions.unusable and not self.refused

    @property
    def lacks_rows(self) -> bool:
        """Whether data files that no version names may hold rows that were committed.

        Where no manifest is lost they hold none: Lance's clean-up leaves some of those that it
        should remove, and what they hold may have been deleted.
        """
        folder = self.location.folder
        lost = self.versions.lacks_manifest or (folder is not None and has_left(folder))
        return lost and bool(self.versions.unnamed)

    @property
    def later(self) -> RowIds:
        """`(n,) uint64`, ids of rows whose key an earlier row has that can stay."""
        if self.found is None:
            return np.empty(0, np.uint64)
        stays = ~np.isin(self.found.row_ids, self.found.partial)
        return self.found.row_ids[stays][~run_starts(self.found.keys[stays])]


@dataclass(frozen=True)
class Repair:
    """What was done to a space.

    Attributes:
        recovered: Rows that were read out of damaged files, or of files that no version named, and
            committed again.
        dropped: Rows of the fragments that could not be read, before what was recovered of them.
        deleted: Single rows that were deleted.
        manifests: Manifests that were set aside.
        rebuilt: Whether there was no manifest left, so that a new table was begun.
        moved: Whether the whole folder was set aside: nothing in it can be read.
        set_aside: The hidden folder with what was set aside; None if nothing was.
        set_aside_bytes: Bytes in it.
        sound: Whether nothing is wrong any more.
    """

    recovered: int = 0
    dropped: int = 0
    deleted: int = 0
    manifests: int = 0
    rebuilt: bool = False
    moved: bool = False
    set_aside: Location | None = None
    set_aside_bytes: int = 0
    sound: bool = False

    def __str__(self) -> str:
        counts = {
            f"{self.manifests:,} manifests are set aside": self.manifests,
            "no manifest was left: a new table is begun": self.rebuilt,
            f"{self.dropped:,} rows were in files that cannot be read as they are": self.dropped,
            f"{self.recovered:,} rows are recovered from damaged files, or files that no version "
            "named": self.recovered,
            "nothing in the folder can be read: it is set aside": self.moved,
        }
        lines = [line for line, count in counts.items() if count]
        if self.set_aside is not None:
            lines.append(
                f"set aside ({self.set_aside_bytes / 1e6:,.1f} MB): {self.set_aside}; delete it "
                "when you need it no more. What it held and the space has not is encoded again"
            )
        return "\n".join(lines)


def examine(location: Location) -> Condition:
    """Look at every version of a space, and at every row of the newest usable one.

    What cannot be read is part of the answer, not an error.
    """
    try:
        versions = read_versions(location)
    except NewerFormatError as error:
        return Condition(location, Versions(None), None, str(error))
    if location.folder is None and versions.unusable:
        found = None if versions.newest is None else survey(versions.newest)
        return Condition(location, versions, found, _NOT_IN_A_STORE)
    if versions.newest is None:
        return Condition(location, versions, None)
    found = survey(versions.newest)
    own = versions.newest.metadata.identity.fingerprint()
    refused = ""
    if fingerprint_in(location.name) != own:
        refused = (
            f"its folder's name does not end in --{own}.lance, the fingerprint of the identity in "
            "its metadata, so embcache does not find it: rename it"
        )
    return Condition(location, versions, found, refused)


def repair_space(condition: Condition) -> Repair:
    """Mend whatever is wrong with a space; see above for how.

    Args:
        condition: What `examine` found; not refused.

    Returns:
        What was done.

    Raises:
        CacheError: It cannot be written.
    """
    folder = condition.location.folder
    aside, done = None if folder is None else Aside(folder), Repair()
    for left in reversed(range(_ROUNDS)):
        manifests = condition.versions.unusable  # without them, files have rows that it lacks
        try:
            done = _mend(condition, aside, done)
        except CacheError as error:
            if not left:
                raise  # else perhaps another process changed it just now
            if left == 1 and not is_conflict(error) and aside is not None:
                _set_newest_aside(condition, aside)
        if done.moved:
            done = replace(done, sound=True)
            break
        condition = examine(condition.location)
        if condition.sound and not manifests:
            done = replace(done, sound=True)
            break
    place = None if aside is None or aside.folder is None else Location.of(aside.folder)
    return replace(done, set_aside=place, set_aside_bytes=0 if place is None else place.size())


def _mend(condition: Condition, aside: Aside | None, done: Repair) -> Repair:
    if aside is not None and condition.versions.unusable:
        # First of all: what is to be done depends on what is left.
        return replace(done, manifests=done.manifests + _without_manifests(condition, aside))
    found, reader = condition.found, condition.versions.newest
    if aside is not None and (found is None or reader is None):
        return _rebuild(condition, aside, done)
    assert found is not None and reader is not None  # in a store, all else is refused
    space = Space(condition.location, reader.metadata)
    broken = [one for one in reader.fragments if one.fragment_id in found.broken]
    stays = ~np.isin(found.row_ids, found.partial)
    recovery = Recovery(space, reader.dim, reader.metadata.identity, found.keys[stays])
    if condition.lacks_rows:
        recovery.take_in(condition.versions.unnamed)
    recovery.take_back(reader, found, condition.versions.older)
    if broken:
        for path in filter(can_be_opened, paths_of(condition.location, broken)):
            assert aside is not None  # in a store, there are no paths
            aside.keep(path)
        space.drop_fragments(reader, found.broken)
    wrong = np.concatenate((found.damaged, found.misfits, condition.later))
    wrong = wrong[~np.isin(wrong, found.partial)]  # those are gone, and their ids may be given anew
    if len(wrong):
        space.delete_rows(np.sort(wrong))
    return replace(
        done,
        recovered=done.recovered + recovery.recovered,
        dropped=done.dropped + sum(one.metadata.num_rows for one in broken),
        deleted=done.deleted + len(wrong),
    )


def _without_manifests(condition: Condition, aside: Aside) -> int:
    """Take the manifests away that cannot be used; returns how many."""
    location = condition.location
    with only_one(location.parent.folder):  # where there are no locks, without: it is asked for
        there = versions(_folder(location))
        found = read_versions(location)  # anew: another process may have been here
        for bad in found.unusable:
            aside.move(bad.path)
        bad_paths = {bad.path for bad in found.unusable}
        gone = [number for number, path in there.items() if path in bad_paths]
        if gone and found.newest is not None:
            pass_by(location, found.newest.dataset.version, max(gone))
        return len(found.unusable)


def _set_newest_aside(condition: Condition, aside: Aside) -> None:
    """Take a manifest away that can be read and on which Lance commits nothing.

    Raises:
        CacheError: It is the file system that refuses.
    """
    location, newest = condition.location, condition.versions.newest
    location.try_committing()
    with only_one(location.parent.folder):
        if newest is None or location.versions()[:1] != [newest.dataset.version]:
            return
        aside.move(manifest(_folder(location), newest.dataset.version))
        older = read_versions(location).newest
        if older is not None:
            pass_by(location, older.dataset.version, newest.dataset.version)


def _rebuild(condition: Condition, aside: Aside, done: Repair) -> Repair:
    """Begin the table again, from data files alone: each says what it is of."""
    location = condition.location
    files = [*open_files(data_paths(_folder(location)))]
    expected = fingerprint_in(location.name)
    rows: Counter[str] = Counter()
    for file in files:
        if expected in (None, file.metadata.identity.fingerprint()):
            rows[_kind(file)] += len(file)
    if rows:
        ((chosen, _),) = rows.most_common(1)
        first = next(file for file in files if _kind(file) == chosen)
        space = Space(
            location,
            first.metadata,
            layout=first.layout,
            store_text=first.layout.texts[0] in first.schema.names,
        )
        recovery = Recovery(space, first.dim, first.metadata.identity)
        recovery.take_in(data_paths(_folder(location)))
        if recovery.recovered:
            recovered = done.recovered + recovery.recovered
            return replace(done, recovered=recovered, rebuilt=True)
    aside.move_table()
    return replace(done, moved=True)


def _folder(location: Location) -> Path:
    assert location.folder is not None  # what has none has nothing set aside
    return location.folder


def _kind(file: DataFile) -> str:
    """Identity, columns and dimension in one: files of one table have them in common."""
    return str(file.schema.to_string(truncate_metadata=False))
