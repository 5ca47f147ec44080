"""Which space a user means: one way to name one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embcache.errors import CacheError, ConfigError
from embcache.store import Database, Location, Space, open_listed

CachePath = str | os.PathLike[str] | Location
"""Where a cache is: a directory, a URL, or a Location."""

_SCHEME = "://"  # only in a URL


@dataclass(frozen=True)
class _Candidate:
    """A table that may be meant.

    Attributes:
        space: Its handle.
        error: Why it cannot be opened; None if it can.
    """

    space: Space
    error: CacheError | None = None

    @property
    def names(self) -> list[str]:
        """What it may be called, in lower case."""
        names = [self.space.name]
        if self.error is None:
            identity = self.space.identity
            names += [self.space.metadata.model, identity.model, identity.fingerprint()]
        return [name.lower() for name in names]


def find_space(
    space: str | os.PathLike[str],
    cache: CachePath = "cache",
    *,
    storage_options: Mapping[str, str] | None = None,
) -> Space:
    """The space that a user means, which can be opened.

    Args:
        space: A space's name, or a part of it or of its model's name that no other space in
            `cache` has; or a space's folder or URL, `<cache>/<name>.lance`; or a cache that holds
            exactly one space.
        cache: Where to look for a name.
        storage_options: What the stores of URLs need to be opened; if `cache` is a Location, its
            own are taken for both.

    Raises:
        ConfigError: No space fits, or several do; names those that there are.
        CacheError: There is no such cache, or the space cannot be opened.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """
    found = _find(os.fspath(space), Location.of(cache, storage_options))
    if found.error is not None:
        raise found.error
    return found.space


def find_spaces(
    spaces: Iterable[str | os.PathLike[str]] | None,
    cache: CachePath = "cache",
    *,
    storage_options: Mapping[str, str] | None = None,
) -> list[Space]:
    """The spaces that a user means, which need not be sound; all of a cache's if none is named.

    Args:
        spaces: Each as for `find_space`; None, or none, for all.
        cache: Where to look for names.
        storage_options: As for `find_space`.

    Raises:
        ConfigError: To a name, no space fits, or several do.
        CacheError: There is no such cache.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """
    where = Location.of(cache, storage_options)
    if named := [*(spaces or ())]:
        return [_find(os.fspath(space), where).space for space in named]
    return [candidate.space for candidate in _candidates(where)]


def hint_of(cache: Location) -> str:
    """What a folder without spaces seems to be, as a sentence for people; "" if unknown."""
    if cache.holds("vectors.npy", "index.json"):  # mteb's NumpyCache writes these
        return " It is a NumpyCache of mteb's, which has no spaces."
    if caches := cache.caches():
        return f" It holds caches: {', '.join(caches)}."
    return ""


def _find(space: str, cache: Location) -> _Candidate:
    if not space:
        return _find_by_name(space, cache)
    folder = Location.of(space, cache.storage_options, argument="space")
    if _SCHEME in str(folder):
        return _find_at(space, folder)
    if folder.is_table:
        if cache.folder is None:
            cache.check()  # in seconds; what comes next is patient with its store
        for table in (folder, cache.within(space)):
            if table.has_table() or table.is_lost_table():
                return _named_table(table)
        if os.path.dirname(space) and folder.parent.exists():
            cache = folder.parent
    elif folder.exists():
        return _find_in_folder(space, folder, cache)
    return _find_by_name(space, cache)


def _find_at(url: str, place: Location) -> _Candidate:
    """The space at a URL, which is a part of no name."""
    if not place.is_table:
        inside = _candidates(place)
        if len(inside) != 1:
            raise ConfigError(_not_one(url, place, inside, inside))
        return inside[0]
    place.check()
    if place.has_table() or place.is_lost_table():
        return _named_table(place)
    raise ConfigError(_not_one(url, place.parent, [], _candidates(place.parent)))


def _named_table(table: Location) -> _Candidate:
    if (found := _candidate(table)) is None:
        raise ConfigError(f"{table} is a Lance table, and no space of embcache's.")
    return found


def _find_in_folder(space: str, folder: Location, cache: Location) -> _Candidate:
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


def _find_by_name(space: str, cache: Location) -> _Candidate:
    candidates = _candidates(cache)
    name = cache.within(space).name if space.endswith(".lance") else space
    found = _matching(candidates, name.lower())
    if len(found) != 1:
        raise ConfigError(_not_one(space, cache, found, candidates))
    return found[0]


def _candidates(cache: Location) -> list[_Candidate]:
    """The spaces of a cache, by name; those that cannot be opened are among them.

    Raises:
        CacheError: There is no such directory.
    """
    Database(cache, writable=False).check_exists()
    return [one for table in cache.tables() if (one := _candidate(table)) is not None]


def _candidate(table: Location) -> _Candidate | None:
    try:
        found = open_listed(table)
    except CacheError as error:
        return _Candidate(Space(table), error)
    return None if found is None else _Candidate(found)


def _matching(candidates: list[_Candidate], wanted: str) -> list[_Candidate]:
    """Spaces that are called so; if there are none, spaces whose name has this part."""
    if not wanted:
        return []
    called = [one for one in candidates if wanted in one.names]
    return called or [one for one in candidates if any(wanted in name for name in one.names)]


def _not_one(
    space: str, cache: Location, found: list[_Candidate], candidates: list[_Candidate]
) -> str:
    """Why a name is not one space's, and which there are."""
    if not candidates:
        return f"There is no space in {cache}.{hint_of(cache)} Name the cache with cache=."
    listed = "".join(f"\n  {one.space.name}" for one in found or candidates)
    if found:
        return (
            f"{space!r} is not one space: {len(found)} in {cache} fit. Give more of the name, the "
            f"fingerprint at its end, say:{listed}"
        )
    return (
        f"No space in {cache} is called {space!r}, or has that in its name. Name one of these, or "
        f"another cache with cache=:{listed}"
    )
