"""A table's versions, each opened by itself: which of them can be used, and why others cannot.

Lance opens the newest version and fails where its manifest is damaged, though all older ones may
be whole; and it compacts no table of which any manifest, however old, cannot be read. So each is
tried. That a manifest can be read says little: it has no checksum. A version counts as sound only
if it calls itself what its file is called, its identity is the one that the folder's name stands
for, and its columns are those that its data files have.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from embcache.errors import CacheError, NewerFormatError, UnreachableError
from embcache.store.data_file import DataFile
from embcache.store.lance_errors import READ_FIX, lance_errors
from embcache.store.location import Location
from embcache.store.locks import in_turn, pin
from embcache.store.manifests import (
    FOLDER,
    data_paths,
    fingerprint_in,
    manifests,
    newest_committed,
)
from embcache.store.reader import Reader, open_table
from embcache.store.schema import SCORES, VECTORS, format_is_newer
from embcache.store.watch import reading

_MAGIC = b"LANC"
_COMPARED_FILES = 8


@dataclass(frozen=True)
class Unusable:
    """A manifest that stands for no version which can be used.

    Attributes:
        path: The file.
        why: What is wrong with it.
        newer: Whether a normal opening meets it, and not only a compaction.
    """

    path: Path
    why: str
    newer: bool


@dataclass(frozen=True)
class Versions:
    """What became of looking at every version.

    Attributes:
        newest: The newest one that can be used; None if there is none.
        unusable: Manifests that cannot, newest first.
        older: Numbers of older versions, newest first, which name data files that no newer one
            does: what a compaction or a deletion left behind.
        unnamed: Data files that no version names: what a killed writer or a clean-up left, or what
            a lost manifest named.
        committed: The newest version that there seems to have been, see `newest_committed`.
    """

    newest: Reader | None
    unusable: tuple[Unusable, ...] = ()
    older: tuple[int, ...] = ()
    unnamed: tuple[Path, ...] = ()
    committed: int = 0

    @property
    def lacks_manifest(self) -> bool:
        """Whether a version newer than all that can be used seems to have been committed."""
        return self.newest is None or self.committed > self.newest.dataset.version


def data_names(fragments: Iterable[lance.LanceFragment]) -> set[str]:
    """Names of the data files of some fragments."""
    return {
        file.path.rpartition("/")[2] for fragment in fragments for file in fragment.metadata.files
    }


def can_be_opened(path: Path) -> bool:
    """Whether a file is there, so that an error of Lance's is about what it holds.

    Raises:
        CacheError: The system refuses: a permission, or too many open files. That is no damage.
    """
    try:
        with path.open("rb"):
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EIO, errno.EISDIR):
            return True  # a bad sector is damage, and so is a folder in a file's place
        raise CacheError(
            f"{path} cannot be opened: {error.strerror or error}. That says nothing of what it "
            "holds, so nothing is mended; see that it can be read, and try again."
        ) from error


def open_version(location: Location, number: int) -> lance.LanceDataset:
    """One version of a table.

    Raises:
        CacheError: Lance cannot open it, or it is another one.
    """
    dataset = open_table(location, number)
    if dataset.version != number:
        raise CacheError(
            f"The manifest of version {number} of {location} says that it is version "
            f"{dataset.version}: the file was swapped, or is damaged."
        )
    return dataset


def read_versions(location: Location) -> Versions:
    """Look at every version of a table.

    Raises:
        NewerFormatError: The table is of a newer format: it is not for this embcache to judge.
    """
    expected = fingerprint_in(location.name)
    found = _judge(location, expected)
    if found.newest is None and expected and not _any_file_is_of(location, expected):
        return _judge(location, None)  # nothing here is of its name: a folder that was renamed
    return found


def sound_reader(location: Location, number: int, fingerprint: str | None) -> Reader:
    """One version, if it is sound; see above for what that is.

    Args:
        location: The table.
        number: Which version.
        fingerprint: What that of its identity must be; None for any.

    Raises:
        NewerFormatError: It is of a newer format.
        CacheError: It is not sound.
    """
    with in_turn(location.folder, committing=False):  # none of its files go meanwhile
        dataset = open_version(location, number)
        held = pin(location.folder, number)
    with lance_errors(f"Reading version {number} of", location, READ_FIX):
        files = _files_of(dataset, location)
        any_file = next(files, None)
        if any_file and format_is_newer(dataset.schema):  # those of a newer format are not opened
            raise CacheError(f"{location} has another format version than its data files.")
        reader = Reader(dataset, location, held)
        problems = []
        # The first agrees as a rule, and each takes a millisecond to open.
        if any_file and not any(
            _agree(file.schema, reader.schema) for file in chain([any_file], files)
        ):
            problems.append("its columns are not those of its data files")
        ids = [*_field_ids(dataset.lance_schema.fields())]
        if len(set(ids)) < len(ids):
            problems.append("two of its columns have one id, so that nothing can be written")
    found = reader.metadata.identity.fingerprint()
    if fingerprint not in (None, found):
        problems.append(
            f"its identity has the fingerprint {found}, and the folder's name {fingerprint}"
        )
    if problems:
        raise CacheError(f"Version {number} of {location} cannot be used: {'; '.join(problems)}.")
    return reader


def _judge(location: Location, fingerprint: str | None) -> Versions:
    if location.folder is None:
        return _judge_remote(location, fingerprint)
    newest: Reader | None = None
    unusable: list[Unusable] = []
    older: list[int] = []
    unnamed = {path.name: path for path in data_paths(location.folder)}
    for path, number in manifests(location.folder):
        try:
            reading(path)
            if number is None:
                raise CacheError(f"{path} has a name that no manifest of this table can have.")
            dataset = open_version(location, number)
            # Of an older version, its data files only where they may be ones that no newer names.
            fragments = _fragments(dataset, location) if newest is None or unnamed else []
            own = data_names(fragments) & unnamed.keys()
            sound = newest is None or own
            reader = sound_reader(location, number, fingerprint) if sound else None
            _check_end(path)
        except NewerFormatError:
            raise
        except CacheError as error:
            if can_be_opened(path):  # else it was removed just now
                unusable.append(Unusable(path, str(error), newest is None or number is None))
        else:
            older += [number] if newest is not None and own else []
            newest = reader if newest is None else newest  # one without rows is false
            unnamed = {name: at for name, at in unnamed.items() if name not in own}
    committed = newest_committed(location.folder)
    return Versions(newest, tuple(unusable), tuple(older), tuple(unnamed.values()), committed)


def _judge_remote(location: Location, fingerprint: str | None) -> Versions:
    """The same in a store, down to the newest version that can be used: each takes requests."""
    unusable: list[Unusable] = []
    for number in location.versions():
        try:
            newest = sound_reader(location, number, fingerprint)
        except (NewerFormatError, UnreachableError):
            raise
        except CacheError as error:
            unusable.append(Unusable(Path(FOLDER, str(number)), str(error), newer=True))
        else:
            return Versions(newest, tuple(unusable), committed=number)
    return Versions(None, tuple(unusable))


def _check_end(path: Path) -> None:
    """Refuse a manifest that does not end as one does: to open it Lance looks for less.

    A compaction, which reads all manifests, looks at this too.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(_MAGIC)))
            complete = file.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError as error:
        raise CacheError(f"{path} was removed just now.") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not complete:
        raise CacheError(f"{path} is damaged at its end.")


def _fragments(dataset: lance.LanceDataset, location: Location) -> list[lance.LanceFragment]:
    with lance_errors(f"Reading version {dataset.version} of", location, READ_FIX):
        fragments: list[lance.LanceFragment] = dataset.get_fragments()
        return fragments


def _files_of(dataset: lance.LanceDataset, location: Location) -> Iterator[DataFile]:
    """Some of a version's data files, those that can be opened."""
    names = sorted(data_names(dataset.get_fragments()))
    if location.folder is not None:
        folder = location.folder / "data"
        yield from _opened(folder / name for name in names[:_COMPARED_FILES])


def _opened(paths: Iterable[Path]) -> Iterator[DataFile]:
    for path in paths:
        with suppress(CacheError):  # damaged: what reads its rows says so
            yield DataFile(path)


def _field_ids(fields: Iterable[Any]) -> Iterator[int]:
    for field in fields:
        yield field.id()
        yield from _field_ids(field.children())


def _agree(inside: pa.Schema, table: pa.Schema) -> bool:
    """Whether a file's columns, as far as the table has them, are of the table's types.

    One that the table has not may have been dropped, but not while the table has a strange one.
    """
    known = {*inside.names, *VECTORS.texts, *VECTORS.notes, *SCORES.texts, *SCORES.notes}
    if set(inside.names) - set(table.names) and set(table.names) - known:
        return False
    return all(
        field.type == table.field(field.name).type for field in inside if field.name in table.names
    )


def _any_file_is_of(location: Location, fingerprint: str) -> bool:
    paths = [] if location.folder is None else data_paths(location.folder)
    return any(file.metadata.identity.fingerprint() == fingerprint for file in _opened(paths))
