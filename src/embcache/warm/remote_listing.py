"""Which files a URL stands for: the rules of `files`, in an object store."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from glob import has_magic

import pyarrow.fs as pafs

from embcache.errors import ConfigError
from embcache.warm.formats import FORMATS, VERSIONS, is_wanted, may_be_table, warn_of_others
from embcache.warm.remote_files import Place, RemoteFile, asking

_FILE, _FOLDER = pafs.FileType.File, pafs.FileType.Directory


def find_remote(url: str, kind: str) -> list[RemoteFile]:
    """Find files in an object store by name, glob or folder, see `files.find_files`.

    A glob lists only folders that it may match something in; `**` everything below.

    Args:
        url: Of files; `*`, `?`, `[...]` and `**` mean what they mean on a disk.
        kind: A key of `FORMATS`.

    Returns:
        The files, sorted.

    Raises:
        ConfigError: There is none, or the URL is of no store.
        InputError: The store refuses, or does not answer.
    """
    place = Place.of(url)
    with asking(url):
        store = place.filesystem
        info = _looked_up(store, place.path)
        if info.type in (_FILE, _FOLDER):  # a file's own name may look like a glob
            matches = [info]
        elif has_magic(place.key):
            found = _globbed(store, place.container, place.key.split("/"))
            matches = sorted(_fitting(found, place.key, kind), key=lambda one: str(one.path))
        else:
            matches = []
        if not matches:
            _raise_reason(store, place.path)
        files: list[RemoteFile] = []
        for match in matches:
            files += _files_of(store, place, match, kind)
    if not files:
        raise ConfigError(
            f"{url}: there is no such {kind} file in the store, or no "
            f"{' or '.join(FORMATS[kind])} in that folder."
        )
    return list(dict.fromkeys(files))


def find_one(url: str) -> RemoteFile | None:
    """The file that a URL names, as it is; None if there is none.

    Raises:
        ConfigError: The URL is of no store.
        InputError: The store refuses, or does not answer.
    """
    place = Place.of(url)
    with asking(url):
        info = _looked_up(place.filesystem, place.path)
    return RemoteFile(place.url(info.path), info.size) if info.type == _FILE else None


def _looked_up(store: pafs.FileSystem, path: str) -> pafs.FileInfo:
    try:
        [info] = store.get_file_info([path])
    except OSError as error:
        if "ACCESS_DENIED" in str(error):
            _raise_reason(store, path)
        raise
    return info


def _raise_reason(store: pafs.FileSystem, path: str) -> None:
    """Raise what S3 says to a list of what is not there: a missing bucket, a wrong secret.

    What is asked about one object is answered without a reason.
    """
    with suppress(FileNotFoundError):
        store.get_file_info(pafs.FileSelector(path))


def _fitting(found: Iterator[pafs.FileInfo], key: str, kind: str) -> Iterator[pafs.FileInfo]:
    hidden = key.rpartition("/")[2].startswith("_")
    for info in found:
        if info.base_name.startswith("_") and not hidden:
            continue
        above = info.path.split("/")[:-1]
        # `**` finds the files of tables, too.
        if kind != "lance" or (info.type == _FOLDER and not any(map(may_be_table, above))):
            yield info


def _globbed(store: pafs.FileSystem, base: str, patterns: list[str]) -> Iterator[pafs.FileInfo]:
    """What a glob matches below a folder."""
    head, *rest = patterns
    if head == "**":
        below = _listed(store, base, recursive=True)
        shown = [info for info in below if not _has_hidden(_within(info.path, base))]
        if not rest:
            yield from shown
            return
        folders = [base, *(info.path for info in shown if info.type == _FOLDER)]
        for folder in folders:
            yield from _globbed(store, folder, rest)
        return
    if not has_magic(head):
        path = f"{base}/{head}"
        if rest:
            yield from _globbed(store, path, rest)
        else:
            [info] = store.get_file_info([path])
            yield from [info] if info.type in (_FILE, _FOLDER) else []
        return
    for info in _listed(store, base):
        name = info.base_name
        if name.startswith(".") and not head.startswith("."):
            continue
        if not fnmatch.fnmatchcase(name, head):
            continue
        if not rest:
            yield info
        elif info.type == _FOLDER:
            yield from _globbed(store, info.path, rest)


def _has_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _listed(store: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
    return list(store.get_file_info(selector))


def _within(path: str, folder: str) -> str:
    return path.removeprefix(folder).strip("/")


def _files_of(
    store: pafs.FileSystem, place: Place, match: pafs.FileInfo, kind: str
) -> list[RemoteFile]:
    if match.type == _FILE:
        return [RemoteFile(place.url(match.path), match.size)]
    if kind == "lance":
        [versions] = store.get_file_info([f"{match.path}/{VERSIONS}"])
        if versions.type == _FOLDER:
            return [RemoteFile(place.url(match.path))]
    return _in_folder(store, place, match.path, kind)


def _in_folder(store: pafs.FileSystem, place: Place, folder: str, kind: str) -> list[RemoteFile]:
    """The files of a folder and of those below, and a warning of what else is there."""
    below = _listed(store, folder, recursive=True)
    sizes = {_within(one.path, folder): one.size for one in below if one.type == _FILE}
    tables = {path for name in sizes for path in _tables_above(name)}
    names: list[str] = []
    others: set[str] = set()
    for name in sorted({_unit(name, tables) for name in sizes}):
        parts = name.split("/")
        hidden = next((i for i, one in enumerate(parts[:-1]) if one.startswith((".", "_"))), None)
        if hidden is not None or (name in tables and parts[-1].startswith("_")):
            at = len(parts) - 1 if hidden is None else hidden
            if parts[at].startswith("_"):
                others.add("/".join(parts[: at + 1]))
            continue
        wanted = is_wanted(parts[-1], kind) and (kind == "lance") == (name in tables)
        if wanted:
            names.append(name)
        elif is_wanted(parts[-1], kind) is not None:
            others.add(name)
    warn_of_others(place.url(folder), kind, len(names), sorted(others))
    return [RemoteFile(place.url(f"{folder}/{name}"), sizes.get(name, 0)) for name in names]


def _tables_above(name: str) -> Iterator[str]:
    """The Lance table that a file is a manifest of, if it is."""
    head, found, _ = name.partition(f"/{VERSIONS}/")
    if found and may_be_table(posixpath.basename(head)):
        yield head


def _unit(name: str, tables: set[str]) -> str:
    """The table that a file belongs to, or the file."""
    parts = name.split("/")
    above = ("/".join(parts[:i]) for i in range(1, len(parts)))
    return next((one for one in above if one in tables), name)
