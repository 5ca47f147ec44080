"""Which caches an encoder looks in for what its own has not: what the user named, made out once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from embcache.errors import ConfigError, shown
from embcache.pipeline.upstream import Upstream
from embcache.pipeline.upstream_cache import UpstreamCache
from embcache.store import Database, Location, Space
from embcache.store.location import checked_options, is_url

ENVIRONMENT = "EMBCACHE_UPSTREAM"
"""Upstream caches of encoders that name none, several separated by commas."""

IMPATIENT = {
    "connect_timeout": "5s",
    "timeout": "30s",  # for 5 MB, ten of them at once
    "client_max_retries": "1",
    "client_retry_timeout": "30",
}
"""Options of Lance for upstreams in a store: one that does not answer is done without, and native
code that is waiting for it shall not keep the process from exiting."""

Place = str | os.PathLike[str] | Location


def find_upstreams(
    upstream: Place | Sequence[Place] | None,
    *,
    write: bool,
    database: Database | None,
    storage_options: Mapping[str, str] | None = None,
) -> list[UpstreamCache]:
    """The upstream caches of an encoder, in the order in which they are asked.

    Args:
        upstream: What the user gave; None for what the environment names.
        write: Whether the first of them gets what is encoded.
        database: The encoder's own cache, which is left out where it is named; None for none.
        storage_options: What their stores need to be opened.

    Returns:
        The caches, none twice.

    Raises:
        ConfigError: One is empty or no place of a cache; or there is none, and it is to be
            written.
    """
    given = _from_environment() if upstream is None else _listed(upstream)
    argument = ENVIRONMENT if upstream is None else "upstream"  # what errors call it
    if write and not given:
        raise ConfigError(
            "upstream_write=True, and there is no upstream. Give upstream=, the cache that is to "
            f"be written, or set {ENVIRONMENT}; or leave upstream_write out."
        )
    found: list[Location] = [] if database is None else [database.location]
    own = len(found)
    for one in given:
        location = _location(one, storage_options, argument)
        if not any(location.same_as(other) for other in found):
            found.append(location)
    places = found[own:]
    return [UpstreamCache(place, write=write and place is places[0]) for place in places]


def upstream_of(
    caches: Sequence[UpstreamCache],
    open_space: Callable[..., Space],
    *,
    compact_automatically: bool,
) -> Upstream | None:
    """One identity's spaces in upstream caches.

    Args:
        caches: The caches.
        open_space: Gives the identity's space in a `Database`, as `Database.space`.
        compact_automatically: Whether what is written there is compacted as one's own cache is:
            after commits, so who only reads compacts nothing.

    Returns:
        For one `Pipeline`; None for no caches.
    """
    if not caches:
        return None

    def opened(database: Database) -> Space:
        # In a store, merging fetches what others have written, over whatever line there is: that
        # is left to who looks after it.
        compact = compact_automatically and database.location.folder is not None
        return open_space(database, compact_automatically=compact)

    return Upstream(caches, opened)


def _from_environment() -> list[Place]:
    """Not separated by blanks or colons: a path may have the ones, a URL has the others."""
    named = os.environ.get(ENVIRONMENT, "").split(",")
    return [one.strip() for one in named if one.strip()]


def _listed(upstream: Place | Sequence[Place]) -> list[Place]:
    if isinstance(upstream, (str, os.PathLike, Location)):
        return [upstream]
    try:
        return list(upstream)
    except TypeError:
        raise ConfigError(_no_place(upstream)) from None


def _location(one: Place, storage_options: Mapping[str, str] | None, argument: str) -> Location:
    if not isinstance(one, (str, os.PathLike, Location)) or one == "":
        raise ConfigError(_no_place(one))
    if isinstance(one, Location) or not is_url(os.fspath(one)):
        return Location.of(one, storage_options, argument=argument)
    options = checked_options(storage_options)
    return Location.of(one, {**IMPATIENT, **options}, argument=argument)


def _no_place(value: object) -> str:
    return (
        f"upstream={shown(value)} is no place of a cache. Give a directory, or a list of them; or "
        f"upstream=[] for none, whatever {ENVIRONMENT} names."
    )
