"""A cache: a LanceDB database with one table a space."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from embcache.errors import CacheError, ConfigError
from embcache.identity.identity import DTYPES, Identity, readable_name
from embcache.store.location import Location
from embcache.store.manifests import fingerprint_in
from embcache.store.reader import Reader, open_table
from embcache.store.salvage import is_damage
from embcache.store.schema import (
    VECTORS,
    Layout,
    SpaceMetadata,
    embcache_version,
    is_space,
)
from embcache.store.space import Space

logger = logging.getLogger(__name__)

_NAME_CHARACTERS = 120  # of the model's name; file names end at 255


class Database:
    """The spaces at one location.

    Args:
        path: A directory, made if need be; or a URL of a place in a store.
        storage_options: What a store needs to be opened, beside what the environment says; a
            Location has its own.
        writable: Whether the location must allow writing; if so, that is tried out at once, so
            that a run does not find out after an hour of encoding.

    Raises:
        ConfigError: The path is empty, or a URL of no store.
        CacheError: The path is a file, or a table, or cannot be written.
        UnreachableError: The store does not answer, or refuses; found out within seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Location,
        storage_options: Mapping[str, str] | None = None,
        *,
        writable: bool,
    ) -> None:
        self.location = Location.of(path, storage_options)
        self.location.check()
        if self.location.is_table and self.location.has_table():  # its canaries would be a space
            raise CacheError(
                f"{self.location} is a table's folder and no cache: its cache is "
                f"{self.location.parent}. Give that."
            )
        if writable:
            self.location.try_writing()

    def __repr__(self) -> str:
        return f"<Database {self.location}>"

    def check_exists(self) -> None:
        """Refuse a cache that is not there.

        Raises:
            CacheError: There is no such directory.
        """
        if not self.location.exists():
            raise CacheError(
                f"{self.location} does not exist. Name the cache, a directory or URL, with cache=."
            )

    def try_creating(self) -> None:
        """Try out whether a space can be made and committed to; nothing is left behind.

        Raises:
            CacheError: It cannot.
        """
        self.location.table("trial").try_committing()

    def spaces(self) -> Iterator[Space]:
        """Every space, by name. Lance tables that are not embcache's are passed over.

        Raises:
            CacheError: A table cannot be opened, or is of a newer format.
        """
        for location in self.location.tables():
            if (space := open_listed(location)) is not None:
                yield space

    def readable_spaces(self) -> tuple[list[Space], list[CacheError]]:
        """Every space that can be opened, by name, and what is wrong with the others.

        Raises:
            CacheError: There is no such directory.
        """
        self.check_exists()
        return _opened(self.location.tables())

    def cached_dtypes(self, identity: Identity) -> list[str]:
        """Dtypes in which the cache holds what is otherwise this identity, sorted.

        A damaged space is passed over with a warning: it need not be one of these at all.

        Raises:
            CacheError: A table is of a newer format, or cannot be opened for now.
        """
        tables = self.location.named_as_tables()
        if self.location.folder is None:  # to open each takes requests, and a team's has many
            wanted = {identity.with_dtype(dtype).fingerprint() for dtype in DTYPES.values()}
            tables = [one for one in tables if fingerprint_in(one.name) in (None, *wanted)]
        spaces, errors = _opened([one for one in tables if one.has_table()])
        for error in errors:
            if not is_damage(error):
                raise error
            logger.warning("What a space holds is not known: %s", error)
        return sorted(
            space.identity.dtype
            for space in spaces
            if space.identity.with_dtype(identity.dtype) == identity
        )

    def space(
        self,
        identity: Identity,
        model: str,
        engine_version: str,
        *,
        layout: Layout = VECTORS,
        store_text: bool = True,
        compact_automatically: bool = True,
    ) -> Space:
        """The space of an identity, new or old; nothing is written before its first row.

        Args:
            identity: With a settled dtype.
            model: The model as the user names it, for the table's name.
            engine_version: For the record in a new table's metadata.
            layout: Whether it holds vectors or scores.
            store_text: Whether new rows carry their texts.
            compact_automatically: Whether it is compacted in the background, after commits, when
                it pays.
        """
        fingerprint = identity.fingerprint()
        dtype = readable_name(identity.dtype)
        name = f"{readable_name(model)[:_NAME_CHARACTERS]}--{dtype}--{fingerprint}"
        # Found by fingerprint: a directory that was moved keeps its identity, not its name.
        known = [
            table
            for table in self.location.named_as_tables()
            if table.name.endswith(f"--{fingerprint}")
        ]
        location = self.location.table(name)
        if known != [location]:  # else it is this one, whether there is a table by now or not
            location = next((table for table in known if table.has_table()), location)
        metadata = SpaceMetadata(identity, model, engine_version, embcache_version())
        return Space(
            location,
            metadata,
            layout=layout,
            store_text=store_text,
            compact_automatically=compact_automatically,
        )


def open_space(location: Location) -> Space | None:
    """The space in a table; None where the table is not embcache's.

    Raises:
        ConfigError: There is no table.
        CacheError: It cannot be opened, or is of a newer format.
    """
    dataset = open_table(location)
    # A flip may take away what makes a table a space, but not its name: then it is a damaged one.
    if not is_space(dataset.schema) and fingerprint_in(location.name) is None:
        return None
    reader = Reader(dataset, location)
    return Space(location, reader.metadata, layout=reader.layout)


def open_listed(location: Location) -> Space | None:
    """As `open_space` for what a list of tables named; None where it was removed since.

    Raises:
        CacheError: It cannot be opened, or is of a newer format.
    """
    try:
        return open_space(location)
    except ConfigError:
        if location.has_table():
            raise
        return None


def _opened(tables: Sequence[Location]) -> tuple[list[Space], list[CacheError]]:
    """The spaces in some tables that can be opened, and what is wrong with the others."""
    spaces: list[Space] = []
    errors: list[CacheError] = []
    for location in tables:
        try:
            if (space := open_listed(location)) is not None:
                spaces.append(space)
        except CacheError as error:
            errors.append(error)
    return spaces, errors
