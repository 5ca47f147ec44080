"""Which files a name, a glob or a directory stands for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import NoReturn

from embcache.errors import ConfigError, InputError
from embcache.identity.home import user_path, working_directory
from embcache.store.location import is_url
from embcache.warm.batches import STANDARD_INPUT
from embcache.warm.formats import FORMATS, VERSIONS, is_wanted, may_be_table, warn_of_others
from embcache.warm.remote_files import RemoteFile
from embcache.warm.remote_listing import find_remote


def find_files(patterns: Iterable[str], kind: str) -> list[Path | RemoteFile]:
    """Find files by globs, directories, names and URLs.

    Of a directory, all files of the format are taken, also of those in folders below and of
    folders that are links. What begins with a dot or an underscore is passed over (`._x.parquet`,
    `_SUCCESS`, `_temporary/`), as Spark and datasets do. What else is there and not read, a warning
    names. A Lance table, which is a folder, counts as a file.

    Args:
        patterns: Names of files, also of pipes; globs; directories; URLs of any of these in an
            object store; or `-`, standard input.
        kind: A key of `FORMATS`.

    Returns:
        The files, sorted within each pattern; `STANDARD_INPUT` for `-`.

    Raises:
        ConfigError: A pattern matches no file, is a URL of no store, or standard input is named
            twice.
        InputError: A directory cannot be listed, or a store does not answer or refuses.
    """
    found: list[Path | RemoteFile] = []
    for pattern in patterns:
        if pattern == "-":
            found.append(STANDARD_INPUT)
        else:
            found += find_remote(pattern, kind) if is_url(pattern) else _matching(pattern, kind)
    if found.count(STANDARD_INPUT) > 1:
        raise ConfigError("- is named twice, and standard input can be read only once.")
    return found


def _matching(pattern: str, kind: str) -> list[Path]:
    path = user_path(pattern, kind)
    if path == STANDARD_INPUT:  # a file of this name, given as ./-
        path = path.absolute()
    if path.exists() or not has_magic(pattern):  # a file's own name may look like a glob
        matches = [path] if path.exists() else []
    else:
        matches = sorted(Path(name) for name in glob(str(path), recursive=True))
        if not path.name.startswith("_"):
            matches = [match for match in matches if not match.name.startswith("_")]
        if kind == "lance":  # `**` finds the files of tables, too
            matches = [match for match in matches if match.is_dir() and not _is_inside(match)]
    files: list[Path] = []
    for match in matches:
        whole = not match.is_dir() or (kind == "lance" and _is_table(match))
        files += [match] if whole else _in_folder(match, kind)
    if not files:
        raise ConfigError(
            f"{pattern}: there is no such {kind} file (working directory: "
            f"{working_directory()}), or no {' or '.join(FORMATS[kind])} in that directory."
        )
    return list(dict.fromkeys(files))  # `**` finds a directory and what is in it


def _is_inside(folder: Path) -> bool:
    """Whether it belongs to a table."""
    return any(may_be_table(each.name) and _is_table(each) for each in folder.parents)


def _is_table(folder: Path) -> bool:
    return (folder / VERSIONS).is_dir()


def _in_folder(folder: Path, kind: str) -> list[Path]:
    files: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(root)
        hidden = [name for name in folders if name.startswith((".", "_"))]
        tables = [name for name in folders if may_be_table(name) and _is_table(Path(root, name))]
        # A link may lead to a folder that was or will be read, or that it lies in itself.
        inside = set(folders) - set(hidden) - set(tables)
        folders[:] = [] if real in seen else sorted(inside)
        if real in seen:
            continue
        seen.add(real)
        others += [Path(root, name, "") for name in hidden if name.startswith("_")]
        for name in [*names, *(name for name in tables if name not in hidden)]:
            wanted = _is_wanted(Path(root, name), kind)
            if wanted is not None:
                (files if wanted else others).append(Path(root, name))
    shown = [str(path.relative_to(folder)) for path in sorted(others)]
    warn_of_others(str(folder), kind, len(files), shown)
    return sorted(files)


def _is_wanted(path: Path, kind: str) -> bool | None:
    """Whether a file or table of a folder is read; None if it is not even worth naming."""
    wanted = is_wanted(path.name, kind)
    if not wanted or not path.exists():
        return wanted
    # A pipe that nobody writes to would block.
    return path.is_dir() if kind == "lance" else path.is_file()


def _refuse(error: OSError) -> NoReturn:
    raise InputError(
        f"{error.filename} cannot be listed, so what is in it cannot be read: {error.strerror}."
    ) from error
