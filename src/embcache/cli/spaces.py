"""Which space a user means: one way to name one, for all commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from embcache.errors import CacheError, ConfigError
from embcache.store import Database, SpaceInfo
from embcache.store.space import table_exists

FoundSpace = SpaceInfo
"""What `find_space` finds, under the name by which commands call it."""

DEFAULT_CACHE = Path("cache")

CacheOption = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="The cache that SPACE is in.")
]
AddToOption = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="The cache to add to; made if need be.")
]
SpaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="Part of a space's name (of the model, dtype or fingerprint), or its folder, or a "
        "cache that holds one space.",
        show_default=False,
    ),
]
SpacesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPACE",
        help="Parts of spaces' names, or their folders, or caches that hold one; all of the cache "
        "if none is named.",
        show_default=False,
    ),
]

_NUMPY_CACHE = ("vectors.npy", "index.json")  # mteb's NumpyCache writes these


@dataclass(frozen=True)
class _Candidate:
    """A space's folder.

    Attributes:
        folder: `<cache>/<name>.lance`.
        info: What it says about itself; None where it cannot be opened.
        error: Why it cannot.
    """

    folder: Path
    info: SpaceInfo | None = None
    error: CacheError | None = None

    @property
    def name(self) -> str:
        """Of the table."""
        return self.folder.name.removesuffix(".lance")

    @property
    def names(self) -> list[str]:
        """What it may be called, in lower case."""
        names = [self.name]
        if self.info is not None:
            identity = self.info.metadata.identity
            names += [self.info.metadata.model, identity.model, identity.fingerprint()]
        return [name.lower() for name in names]


def readable_spaces(cache: Path) -> tuple[list[SpaceInfo], list[CacheError]]:
    """Every space of a cache, and what is wrong with those that cannot be opened.

    Raises:
        CacheError: There is no such directory.
    """
    candidates = _candidates(cache)
    spaces = [one.info for one in candidates if one.info is not None]
    return spaces, [one.error for one in candidates if one.error is not None]


def find_space(space: str, cache: Path) -> SpaceInfo:
    """The space that a user means.

    Args:
        space: As for `find_folder`.
        cache: Where to look for a name.

    Raises:
        ConfigError: No space fits, or several do.
        CacheError: There is no such cache, or the space cannot be opened.
    """
    found = _find(space, cache)
    if found.error is not None:
        raise found.error
    if found.info is None:
        raise ConfigError(f"{found.folder} is a Lance table, and no space of embcache's.")
    return found.info


def find_folder(space: str, cache: Path) -> Path:
    """The folder of the space that a user means, which need not be sound.

    Args:
        space: A space's name, or a part of it or of its model's name that no other space in
            `cache` has; or a space's folder, `<cache>/<name>.lance`; or a cache that holds exactly
            one space.
        cache: Where to look for a name.

    Raises:
        ConfigError: No space fits, or several do.
        CacheError: There is no such cache.
    """
    return _find(space, cache).folder


def find_folders(spaces: Iterable[str] | None, cache: Path) -> list[Path]:
    """The folders of the spaces that a user means; all of a cache's if none is named.

    Raises:
        ConfigError: To a name, no space fits, or several do.
        CacheError: There is no such cache.
    """
    if spaces:
        return [find_folder(space, cache) for space in spaces]
    return [candidate.folder for candidate in _candidates(cache)]


def kind_of_folder(path: Path) -> str:
    """What a directory without spaces seems to be, as a hint for people; "" if unknown."""
    if path.suffix == ".lance":
        return f" It is a table's folder; its cache is {path.parent}."
    if all((path / name).exists() for name in _NUMPY_CACHE):
        return " It is a NumpyCache of mteb's, which has no spaces."
    if caches := sorted({table.parent.name for table in path.glob("*/*.lance")}):
        return f" It holds caches: {', '.join(caches)}."
    return ""


def _find(space: str, cache: Path) -> _Candidate:
    folder = Path(space).expanduser()
    if folder.suffix == ".lance":
        for path in (folder, cache.expanduser() / folder):
            if table_exists(path):
                return _candidate(path.absolute())
        if len(folder.parts) > 1 and folder.parent.is_dir():
            cache = folder.parent
    elif space and folder.is_dir():
        return _find_in_folder(space, folder, cache)
    return _find_by_name(space, cache)


def _find_in_folder(space: str, folder: Path, cache: Path) -> _Candidate:
    """The one space of a cache; or, since it is not that, one whose name the folder has by chance.

    A model's own directory is often called as a part of a space's name is.
    """
    inside = _candidates(folder)
    if len(inside) == 1:
        return inside[0]
    try:
        return _find_by_name(space, cache)
    except (ConfigError, CacheError) as error:
        raise ConfigError(_not_one(space, folder, inside, inside)) from error


def _find_by_name(space: str, cache: Path) -> _Candidate:
    candidates = _candidates(cache)
    name = Path(space).name.removesuffix(".lance") if space.endswith(".lance") else space
    found = _matching(candidates, name.lower())
    if len(found) != 1:
        raise ConfigError(_not_one(space, cache, found, candidates))
    return found[0]


def _candidates(cache: Path) -> list[_Candidate]:
    """The spaces of a cache, by name; those that cannot be opened are among them.

    Raises:
        CacheError: There is no such directory.
    """
    database = Database(cache, writable=False)
    if not database.path.is_dir():
        raise CacheError(
            f"{database.path} does not exist. Give the directory of a cache: --cache DIR, to `ls` "
            "and `merge` without --cache."
        )
    folders = sorted(path for path in database.path.glob("*.lance") if table_exists(path))
    candidates = map(_candidate, folders)
    return [one for one in candidates if one.info is not None or one.error is not None]


def _candidate(folder: Path) -> _Candidate:
    """A table's folder; a foreign table has neither what it says about itself nor an error."""
    try:
        found = [*Database(folder.parent, writable=False).spaces(folder.name)]
    except CacheError as error:
        return _Candidate(folder, error=error)
    return _Candidate(folder, info=found[0] if found else None)


def _matching(candidates: list[_Candidate], wanted: str) -> list[_Candidate]:
    """Spaces that are called so; if there are none, spaces whose name has this part."""
    if not wanted:
        return []
    called = [one for one in candidates if wanted in one.names]
    return called or [one for one in candidates if any(wanted in name for name in one.names)]


def _not_one(space: str, cache: Path, found: list[_Candidate], candidates: list[_Candidate]) -> str:
    """Why a name is not one space's, and which there are."""
    where = cache.expanduser().absolute()
    if not candidates:
        hint = kind_of_folder(where)
        return f"There is no space in {where}.{hint} Name the cache with --cache DIR."
    listed = "".join(f"\n  {one.name}" for one in found or candidates)
    if found:
        return (
            f"{space!r} is not one space: {len(found)} in {where} fit. Give more of the name, the "
            f"fingerprint at its end, say:{listed}"
        )
    return (
        f"No space in {where} is called {space!r}, or has that in its name. Name one of these, or "
        f"another cache with --cache DIR:{listed}"
    )
