"""Repair a space in place: what can still be read stays, the rest becomes a miss.

Everything is a commit to the same table, or a manifest that is set aside: readers of older versions
go on, writers meet one more version, and a kill at any moment leaves what the next repair mends.
Writing a new table and exchanging the folders was rejected: a writer that holds the old table
would commit its version into the new one, and a large space would be copied for one file.

1. Manifests of versions that cannot be used are moved to a hidden folder beside the table, so that
   the newest usable version is the newest one.
2. Rows that it lacks, and that some data file here still holds, are appended: of files that no
   version names; and, if something of it is damaged, of all its damaged files and of older ones.
3. The fragments that cannot be read are deleted as a whole, then rows that are damaged, have the
   key of another text, or are duplicates.

Rows that come back are checked like all others: checksum, identity, and key, as far as texts are
stored. Deletions are lost with what is damaged: rows that were deleted from such a file, or by a
version whose manifest is set aside, may be there again unless a compaction removed them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from embcache.errors import CacheError, NewerFormatError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.store import Location, Space, Verified
from embcache.store.aside import Aside
from embcache.store.data_file import DataFile
from embcache.store.index import KeyIndex, KeyParts, run_starts, unique_keys
from embcache.store.verify import key_fits
from embcache.store.versions import (
    Versions,
    data_names,
    data_paths,
    fingerprint_in,
    read_versions,
)
from embcache.tools.merge import Appender
from embcache.tools.verified_rows import RowIds, Survey, survey

_NO_KEYS = np.empty((0, 2), np.uint64)
_ROUNDS = 4  # where other processes commit what a round did not see


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
        return Condition(location, Versions(None, (), ()), None, str(error))
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
    aside, done = Aside(condition.location), Repair()
    for left in reversed(range(_ROUNDS)):
        try:
            done = _mend(condition, aside, done)
        except CacheError:
            if not left:
                raise  # else perhaps another process changed it just now
        if done.moved:
            done = replace(done, sound=True)
            break
        condition = examine(condition.location)
        if condition.sound:
            done = replace(done, sound=True)
            break
    place = aside.location
    return replace(done, set_aside=place, set_aside_bytes=0 if place is None else place.size())


def _mend(condition: Condition, aside: Aside, done: Repair) -> Repair:
    versions = condition.versions
    for bad in versions.unusable:
        aside.move(bad.path)
    done = replace(done, manifests=done.manifests + len(versions.unusable))
    if versions.newest is None or condition.found is None:
        return _rebuild(condition, aside, done)
    found, reader = condition.found, versions.newest
    space = Space(condition.location, reader.metadata)
    broken = [one for one in reader.fragments if one.fragment_id in found.broken]
    files = {path.name: path for path in data_paths(condition.location)}
    stays = ~np.isin(found.row_ids, found.partial)
    collector = _Collector(space, reader.dim, reader.metadata.identity, found.keys[stays])
    collector.take_in(_sources(condition))
    if broken:
        for name in sorted(data_names(broken) & files.keys()):
            aside.keep(files[name])
        space.drop_fragments(reader, found.broken)
    wrong = np.concatenate((found.damaged, found.misfits, condition.later))
    if len(wrong):
        space.delete_rows(np.sort(wrong))
    return replace(
        done,
        recovered=done.recovered + collector.recovered,
        dropped=done.dropped + sum(one.metadata.num_rows for one in broken),
        deleted=done.deleted + len(wrong),
    )


def _sources(condition: Condition) -> list[Path]:
    """Data files that may hold rows which the newest usable version lacks, oldest first."""
    reader, found = condition.versions.newest, condition.found
    if reader is None or found is None:
        return data_paths(condition.location)
    doubtful = {*found.broken, *found.spoilt}
    if not doubtful:
        return list(condition.versions.unnamed)
    whole = data_names(one for one in reader.fragments if one.fragment_id not in doubtful)
    return [path for path in data_paths(condition.location) if path.name not in whole]


def _rebuild(condition: Condition, aside: Aside, done: Repair) -> Repair:
    """Begin the table again, from data files alone: each says what it is of."""
    location = condition.location
    files = [*_open_files(data_paths(location))]
    expected = fingerprint_in(location.name)
    kinds = Counter(
        _kind(file)
        for file in files
        if expected in (None, file.metadata.identity.fingerprint())
        for _ in range(len(file))
    )
    if kinds:
        chosen, _ = kinds.most_common(1)[0]
        first = next(file for file in files if _kind(file) == chosen)
        space = Space(
            location,
            first.metadata,
            layout=first.layout,
            store_text=first.layout.texts[0] in first.schema.names,
        )
        collector = _Collector(space, first.dim, first.metadata.identity)
        collector.take_in(data_paths(location))
        if collector.recovered:
            recovered = done.recovered + collector.recovered
            return replace(done, recovered=recovered, rebuilt=True)
    aside.move_table()
    return replace(done, moved=True)


def _open_files(paths: Iterable[Path]) -> Iterator[DataFile]:
    for path in paths:
        with suppress(CacheError):  # nothing in it can be read, and what is missing is a miss
            yield DataFile(path)


def _kind(file: DataFile) -> str:
    """Identity, columns and dimension in one: files of one table have them in common."""
    return str(file.schema.to_string(truncate_metadata=False))


class _Collector:
    """Appends rows of data files to a space, those whose keys it lacks.

    Args:
        space: Where they go; begun if need be.
        dim: Components of its vectors; 1 for scores.
        identity: Its own: files of another one are passed over.
        keys: `(n, 2) uint64`, of the rows that it has.

    Attributes:
        recovered: Rows that were committed.
    """

    def __init__(self, space: Space, dim: int, identity: Identity, keys: Keys = _NO_KEYS) -> None:
        self.recovered = 0
        self._space = space
        self._dim = dim
        self._identity = identity
        self._known = KeyParts()
        self._remember(keys)

    def take_in(self, paths: Iterable[Path]) -> None:
        """Append what can be read of some data files, in their order.

        Raises:
            CacheError: The space cannot be written.
        """
        appender = Appender(self._commit)
        for file in _open_files(paths):
            same = file.metadata.identity == self._identity and file.dim == self._dim
            for part in file.read() if same else ():
                appender.add(self._new(part, file))
        appender.flush()

    def _commit(self, rows: pa.Table) -> int:
        if len(rows):
            self._space.append(rows, self._dim)
            self.recovered += len(rows)
        return len(rows)

    def _new(self, part: Verified, file: DataFile) -> pa.RecordBatch:
        fits = key_fits(part.batch, part.keys, file.layout, self._identity)
        good = np.flatnonzero(~part.damaged & (fits != 0) & (self._known.find(part.keys) < 0))
        first, _ = unique_keys(part.keys[good])
        chosen = good[first]
        self._remember(part.keys[chosen])
        return part.batch.take(pa.array(chosen))

    def _remember(self, keys: Keys) -> None:
        order = np.arange(len(keys), dtype=np.uint64)
        self._known = self._known.extended(KeyIndex.build(keys, order))
