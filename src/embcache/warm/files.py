"""Which files a name, a glob or a directory stands for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import NoReturn

from embcache.errors import ConfigError, InputError
from embcache.identity.home import user_path
from embcache.warm.batches import STANDARD_INPUT

logger = logging.getLogger(__name__)

ARCHIVES = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files, of the formats that are made of lines."""


def _or_compressed(*endings: str) -> tuple[str, ...]:
    return tuple(ending + archive for ending in endings for archive in ("", *ARCHIVES))


FORMATS = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "jsonl": _or_compressed(".jsonl", ".ndjson", ".json"),
    "csv": _or_compressed(".csv"),
    "tsv": _or_compressed(".tsv", ".tab"),
}
"""File formats, and the endings, in any case, by which their files are found in a directory."""

_ALL_ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
# What the library datasets writes beside its rows.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NAMED = 5


def find_files(patterns: Iterable[str], kind: str) -> list[Path]:
    """Find files by globs, directories and names.

    Of a directory, all files of the format are taken, also of those in folders below and of
    folders that are links. What begins with a dot or an underscore is passed over (`._x.parquet`,
    `_SUCCESS`, `_temporary/`), as Spark and datasets do. What else is there and not read, a warning
    names.

    Args:
        patterns: Names of files, also of pipes; globs; directories; or `-`, standard input.
        kind: A key of `FORMATS`.

    Returns:
        The files, sorted within each pattern; `STANDARD_INPUT` for `-`.

    Raises:
        ConfigError: A pattern matches no file, or standard input is named twice.
        InputError: A directory cannot be listed.
    """
    found: list[Path] = []
    for pattern in patterns:
        found += [STANDARD_INPUT] if pattern == "-" else _matching(pattern, kind)
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
    files: list[Path] = []
    for match in matches:
        files += _in_folder(match, kind) if match.is_dir() else [match]
    if not files:
        raise ConfigError(
            f"{pattern}: there is no such {kind} file (working directory: {Path.cwd()}), or no "
            f"{' or '.join(FORMATS[kind])} in that directory."
        )
    return list(dict.fromkeys(files))  # `**` finds a directory and what is in it


def _in_folder(folder: Path, kind: str) -> list[Path]:
    files: list[Path] = []
    others: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(root)
        hidden = [name for name in folders if name.startswith((".", "_"))]
        # A link may lead to a folder that was or will be read, or that it lies in itself.
        folders[:] = [] if real in seen else sorted(set(folders) - set(hidden))
        if real in seen:
            continue
        seen.add(real)
        others += [Path(root, name, "") for name in hidden if name.startswith("_")]
        for name in names:
            wanted = _is_wanted(Path(root, name), kind)
            if wanted is not None:
                (files if wanted else others).append(Path(root, name))
    if others:
        _warn(folder, kind, files, sorted(others))
    return sorted(files)


def _is_wanted(path: Path, kind: str) -> bool | None:
    """Whether a file of a folder is read; None if it is not even worth naming."""
    name = path.name.lower()
    if name.startswith("."):
        return None
    if name.startswith("_"):
        return False if name.endswith(_ALL_ENDINGS) else None
    if path.exists() and not path.is_file():  # a pipe that nobody writes to would block
        return False
    return name.endswith(FORMATS[kind]) and name not in _DESCRIPTIONS


def _refuse(error: OSError) -> NoReturn:
    raise InputError(
        f"{error.filename} cannot be listed, so what is in it cannot be read: {error.strerror}."
    ) from error


def _warn(folder: Path, kind: str, files: list[Path], others: list[Path]) -> None:
    named = ", ".join(str(path.relative_to(folder)) for path in others[:_NAMED])
    more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    logger.warning(
        "%s: %s of its files read as %s; not read: %s%s",
        folder,
        f"{len(files):,}",
        kind,
        named,
        more,
    )
