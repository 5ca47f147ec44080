"""Finding the space that a user means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from embcache.errors import CacheError, ConfigError, EmbcacheError
from embcache.store import Database, SpaceInfo

DEFAULT_CACHE = Path("cache")

CacheOption = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="The cache that SPACE is in.")
]
SpaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="Folder of a space, or a part of its name: of the model, dtype or fingerprint.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="P",
        help="What was put in front of the text; for scores twice, of query and document.",
        show_default=False,
    ),
]

PromptFilter = Annotated[
    str | None, typer.Option(help="Only rows with this prompt.", show_default=False)
]
ContainsFilter = Annotated[
    str | None, typer.Option(help="Only rows with this in their text.", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]

_NUMPY_CACHE = ("vectors.npy", "index.json")  # mteb's NumpyCache writes these


def open_cache(cache: Path) -> Database:
    """A cache to read from.

    Raises:
        CacheError: There is no such directory.
    """
    database = Database(cache, writable=False)
    if not database.path.is_dir():
        raise CacheError(
            f"{database.path} does not exist. Give the directory of a cache: --cache DIR, to `ls` "
            "and `merge` without --cache."
        )
    return database


def readable_spaces(cache: Path) -> tuple[list[SpaceInfo], list[CacheError]]:
    """Every space of a cache, and what is wrong with those that cannot be opened.

    Raises:
        CacheError: There is no such directory.
    """
    database = open_cache(cache)
    spaces: list[SpaceInfo] = []
    errors: list[CacheError] = []
    for folder in sorted(database.path.glob("*.lance")):
        try:
            spaces += database.spaces(folder.name)
        except CacheError as error:
            errors.append(error)
    return spaces, errors


def find_space(space: str, cache: Path) -> SpaceInfo:
    """The space that a user means.

    Args:
        space: A folder, `<cache>/<name>.lance`; or a space's name, or a part of it or of its
            model's name that no other space in `cache` has.
        cache: Where to look for a name.

    Raises:
        ConfigError: No space fits, or several do.
        CacheError: There is no such cache, or the space cannot be opened.
    """
    folder = Path(space).expanduser()
    if folder.suffix == ".lance":
        for path in (folder, cache.expanduser() / folder):
            if path.is_dir() and (found := [*open_cache(path.parent).spaces(path.name)]):
                return found[0]
    spaces, errors = readable_spaces(cache)
    name = folder.name.removesuffix(".lance") if folder.suffix == ".lance" else space
    found = _matching(spaces, name)
    if len(found) == 1:
        return found[0]
    if not found and (broken := [e for e in errors if name.lower() in str(e).lower()]):
        raise broken[0]
    raise ConfigError(_not_one(space, cache, found, spaces))


def find_space_or_cache(space: str, cache: Path) -> SpaceInfo:
    """As `find_space`; a directory that holds only one space stands for that.

    Raises:
        ConfigError: No space fits, or several do.
        CacheError: There is no such cache, or the space cannot be opened.
    """
    folder = Path(space).expanduser()
    if folder.suffix != ".lance" and folder.is_dir():
        spaces, _ = readable_spaces(folder)
        if len(spaces) == 1:
            return spaces[0]
        if spaces:
            raise ConfigError(_not_one(space, folder, spaces, spaces))
        try:
            return find_space(space, cache)
        except EmbcacheError as error:  # a cache of that name would do, and this is none
            raise ConfigError(_not_one(space, folder, spaces, spaces)) from error
    return find_space(space, cache)


def kind_of_folder(path: Path) -> str:
    """What a directory without spaces seems to be, as a hint for people; "" if unknown."""
    if path.suffix == ".lance":
        return f" It is a table's folder; its cache is {path.parent}."
    if all((path / name).exists() for name in _NUMPY_CACHE):
        return " It is a NumpyCache of mteb's, which has no spaces."
    return ""


def _matching(spaces: list[SpaceInfo], part: str) -> list[SpaceInfo]:
    """Spaces that are called so; if there are none, spaces whose name has this part."""
    wanted = part.lower()

    def names(info: SpaceInfo) -> list[str]:
        identity, name = info.metadata.identity, info.path.name.removesuffix(".lance")
        own = [name, info.metadata.model, identity.model, identity.fingerprint()]
        return [text.lower() for text in own]

    fits: tuple[Callable[[SpaceInfo], bool], ...] = (
        lambda info: wanted in names(info),
        lambda info: any(wanted in name for name in names(info)),
    )
    return next((found for fit in fits if (found := [*filter(fit, spaces)])), []) if wanted else []


def _not_one(space: str, cache: Path, found: list[SpaceInfo], spaces: list[SpaceInfo]) -> str:
    where = cache.expanduser().absolute()
    if not spaces:
        hint = kind_of_folder(where)
        return f"There is no space in {where}.{hint} Name the cache with --cache DIR."
    listed = "".join(f"\n  {info.path.name.removesuffix('.lance')}" for info in found or spaces)
    if found:
        return (
            f"{space!r} is not one space: {len(found)} in {where} fit. Give more of the name, the "
            f"fingerprint at its end, say:{listed}"
        )
    return (
        f"No space in {where} is called {space!r}, or has that in its name. Name one of these, or "
        f"another cache with --cache DIR:{listed}"
    )
