"""Tables from someone else: what a table's folder may hold, and what its manifest may point at.

Lance follows links, and its clean-up removes from a linked folder what no version of the table
names: somebody's files. Measured with Lance 14: a link in `data`, `_deletions` or `_indices` is
enough. Its manifests may name other folders, or stores in the network, to read rows from (shallow
clones). Opening a pipe waits for whoever writes to it. And the hint of the newest version is read
whole, however large it is: where there is less memory, the process ends. So all of this is refused
when a table is opened, by whatever command, before Lance sees it.

Two kinds of links are followed, knowingly. A table that is one itself, to a table of the same
identity, is that table, on another disk, say: rows are added to it, and only what is its own is
cleaned up; `remove` refuses it. And single files, as DVC and git-annex have them: their rows are
checked like all others, and Lance never writes into a file that is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lance

from embcache.errors import CacheError
from embcache.identity.strict_json import MOST_BYTES
from embcache.store.manifests import COMMIT_FOLDERS, DELETIONS, has_manifest, hint


def check_name(table: Path) -> None:
    """Refuse a table with a name that cannot be shown on a line of its own.

    Raises:
        CacheError: It holds a line end, say.
    """
    if not table.name.isprintable():
        raise CacheError(
            f"{str(table)!r} is no name of a table: it holds characters that are not printable. "
            "embcache makes no such names. Rename or remove the folder by hand."
        )


def check_folder(table: Path) -> None:
    """Refuse a table that is not all in its own folder.

    Raises:
        CacheError: A folder in it is a symbolic link, or the table is one and points to no table;
            or there is a pipe or a device; or its hint is too large. A folder that is not there is
            none of these.
    """
    check_name(table)
    if (refused := next(_refused(table), None)) is not None:
        kind = "no file"
        if os.path.islink(refused):
            there = os.path.isdir(refused)
            kind = f"a symbolic link to a {'folder' if there else 'place where no file is'}"
        raise CacheError(
            f"{table} is not opened: {refused} is {kind}, and a table's files are all in its own "
            "folder. Compacting it would remove what is in others. Put the folder itself there "
            "(cp -rL), or move the table away; its texts are encoded again. What leads nowhere, "
            "`check_space` with fix=True sets aside."
        )
    if (size := _hint_bytes(table)) > MOST_BYTES:
        raise CacheError(
            f"{table} is not opened: {hint(table)} has {size:,} bytes, where some 20 are usual, "
            "and Lance would read them all. Remove that file: Lance makes it anew. `check_space` "
            "with fix=True sets it aside."
        )


def strangers(table: Path) -> list[Path]:
    """What lies in a table, or in one inside, and is nothing of it.

    Pipes, devices, links that lead nowhere, files in a folder's place, folders in a file's, a hint
    that is too large. A link to a folder is none of these: whoever put it there has meant something
    by it.

    Args:
        table: The table's folder.

    Raises:
        CacheError: It cannot be looked at.
    """
    nowhere = [Path(entry) for entry in _refused(table) if not os.path.isdir(entry)]
    inside = [*table.glob("*.lance")]
    roots = [table, *inside]
    folders = [root / name for root in roots for name in (*COMMIT_FOLDERS, DELETIONS)]
    files = [path for folder in folders if folder.is_dir() for path in folder.glob("*.*")]
    return [
        *nowhere,
        *(place for place in (*inside, *folders) if place.is_file()),
        *(place for place in files if place.is_dir() and not place.is_symlink()),
        *(hint(root) for root in roots if _hint_bytes(root) > MOST_BYTES),
    ]


def check_manifest(dataset: lance.LanceDataset, table: object) -> None:
    """Refuse a table whose rows lie elsewhere.

    Args:
        dataset: Opened, and nothing read from it.
        table: Names it in errors.

    Raises:
        CacheError: Its manifest names other places.
    """
    # Younger than the oldest Lance that works.
    bases: Mapping[int, Any] = getattr(dataset, "base_paths", dict)()
    if bases:
        places = ", ".join(str(base.path) for base in bases.values())
        raise CacheError(
            f"{table} is not opened: its manifest has rows lie elsewhere, in {places}. Give that "
            "cache itself, or move the table away; its texts are encoded again."
        )


def _hint_bytes(table: Path) -> int:
    with _looking_at(table), suppress(FileNotFoundError, NotADirectoryError):
        return hint(table).stat().st_size
    return 0


@contextmanager
def _looking_at(table: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a link to itself, folders in folders in folders
        raise CacheError(
            f"{table} is not opened: what is in it cannot be looked at: {error.strerror or error}."
        ) from error


def _refused(table: Path) -> Iterator[str]:
    """All in a table that is neither folder nor file; the table where it is a link to none."""
    with _looking_at(table):
        yield from _neither_folder_nor_file(table)


def _neither_folder_nor_file(table: Path) -> Iterator[str]:
    if table.is_symlink() and not has_manifest(table):
        yield str(table)
        return
    folders = [str(table)]
    while folders:
        # Another process may remove an old index's folder, or a file, at this moment; and where
        # a file is in the table's place, who opens or writes it says so.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):  # as the list says, without a look
                    continue
                # Of the entry itself, a link to itself would be an OSError.
                elif not os.path.isfile(entry.path) and os.path.lexists(entry.path):
                    yield entry.path
