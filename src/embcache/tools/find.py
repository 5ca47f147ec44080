"""Which space a user means, by a name, a part of one, or a folder."""

from __future__ import annotations

import os
from collections.abc import Callable

from embcache.errors import ConfigError
from embcache.store import Database, Location, Space, open_space


def find_space(
    space: str | os.PathLike[str], cache: str | os.PathLike[str] | Location = "cache"
) -> Space:
    """The space that a user means.

    Args:
        space: A table's folder, `<cache>/<name>.lance`; the folder of a cache that holds only one
            space; or a space's name, or a part of it or of its model's name, that no other space
            of `cache` has.
        cache: Where to look for a name.

    Raises:
        ConfigError: No space fits, or several do; names those that there are.
        CacheError: There is no such cache, or the space cannot be opened.
    """
    given = os.fspath(space)
    if not given:
        raise ConfigError("The name of the space is empty. Give a part of one, or a folder.")
    folder = Location.of(given, argument="space")
    if folder.has_table():
        if (found := open_space(folder)) is not None:
            return found
        raise ConfigError(f"{folder} is a Lance table, but no space of embcache.")
    within = Location.of(cache)
    if folder.is_table and within.table(folder.name).has_table():
        return find_space(str(within.table(folder.name)))
    if not folder.is_table and folder.exists():
        inside = folder.tables()
        if inside or not within.exists():
            return _only_space(folder)
    return _by_name(given.removesuffix(".lance"), within)


def hint_of(cache: Location) -> str:
    """What a folder without spaces seems to be, as a sentence for people; "" if unknown."""
    if cache.is_table:
        return f" It is a table's folder; its cache is {cache.parent}."
    if cache.holds("vectors.npy", "index.json"):  # mteb's NumpyCache writes these
        return " It is a NumpyCache of mteb's, which has no spaces."
    return ""


def _only_space(cache: Location) -> Space:
    spaces, errors = Database(cache, writable=False).readable_spaces()
    if len(spaces) == 1 and not errors:
        return spaces[0]
    if len(errors) == 1 and not spaces:
        raise errors[0]
    if not spaces:
        raise ConfigError(f"There is no space in {cache}.{hint_of(cache)} Give another cache.")
    raise ConfigError(
        f"{cache} holds {len(spaces) + len(errors)} spaces. Give the folder of one, or a part of "
        f"its name:{_listed(spaces)}"
    )


def _by_name(name: str, cache: Location) -> Space:
    spaces, errors = Database(cache, writable=False).readable_spaces()
    found = _matching(spaces, name)
    if len(found) == 1:
        return found[0]
    if not found and (broken := [e for e in errors if name.lower() in str(e).lower()]):
        raise broken[0]
    if not spaces:
        raise ConfigError(f"There is no space in {cache}.{hint_of(cache)} Give another cache.")
    if found:
        raise ConfigError(
            f"{name!r} is not one space: {len(found)} in {cache} fit. Give more of the name, the "
            f"fingerprint at its end, say:{_listed(found)}"
        )
    raise ConfigError(
        f"No space in {cache} is called {name!r}, or has that in its name. Name one of these, or "
        f"another cache:{_listed(spaces)}"
    )


def _matching(spaces: list[Space], part: str) -> list[Space]:
    """Spaces that are called so; if there are none, spaces whose name has this part."""
    wanted = part.lower()

    def names(space: Space) -> list[str]:
        identity = space.identity
        own = [space.name, space.metadata.model, identity.model, identity.fingerprint()]
        return [text.lower() for text in own]

    fits: tuple[Callable[[Space], bool], ...] = (
        lambda space: wanted in names(space),
        lambda space: any(wanted in name for name in names(space)),
    )
    return next((found for fit in fits if (found := [*filter(fit, spaces)])), [])


def _listed(spaces: list[Space]) -> str:
    return "".join(f"\n  {space.name}" for space in spaces)
