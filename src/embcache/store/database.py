"""A cache directory: a LanceDB database with one table a space."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lance

from embcache.errors import CacheError, ConfigError
from embcache.identity.identity import Identity, readable_name
from embcache.store.location import READ_FIX, lance_errors
from embcache.store.schema import (
    VECTORS,
    Layout,
    SpaceMetadata,
    embcache_version,
    is_space,
    read_metadata,
)
from embcache.store.space import Space, table_exists

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")  # one slash: a Path has lost the other
_NAME_CHARACTERS = 120  # of the model's name; file names end at 255


@dataclass(frozen=True)
class SpaceInfo:
    """A space found in a cache.

    Attributes:
        path: Its folder.
        metadata: What it says about itself.
    """

    path: Path
    metadata: SpaceMetadata


class Database:
    """The spaces under one path.

    Args:
        path: A directory of this machine; made if need be.
        writable: Whether the path must allow writing; if so, that is tried out at once, so that
            a run does not find out after an hour of encoding.

    Raises:
        ConfigError: The path is a URL.
        CacheError: The path is a file, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool) -> None:
        if _URL.match(os.fspath(path)):
            raise ConfigError(
                f"cache_path={os.fspath(path)!r} is a URL. Give a directory of this machine; copy "
                "the cache to move it."
            )
        if not os.fspath(path):
            raise ConfigError("cache_path is empty. Give a directory, or None for no cache.")
        try:
            self.path = Path(path).expanduser().absolute()  # whatever the caller changes to later
        except RuntimeError as error:  # ~name of nobody
            raise ConfigError(f"cache_path={os.fspath(path)!r}: {error} Write it out.") from error
        if self.path.exists() and not self.path.is_dir():
            raise CacheError(
                f"cache_path={str(self.path)!r} is a file; a cache is a directory. Give another "
                "path, or move the file away."
            )
        if writable:
            _try_writing(self.path)

    def spaces(self, name: str | None = None) -> Iterator[SpaceInfo]:
        """Every space, by name. Lance tables that are not embcache's are passed over.

        Args:
            name: Only the space in this folder, `<name>.lance`.

        Raises:
            CacheError: A table cannot be opened, or is of a newer format.
        """
        for path in sorted(self.path.glob("*.lance")):
            if name not in (None, path.name) or not table_exists(path):
                continue
            with lance_errors("Opening", path, READ_FIX):
                schema = lance.dataset(str(path)).schema
            if is_space(schema):
                yield SpaceInfo(path, read_metadata(schema, str(path)))

    def cached_dtypes(self, identity: Identity) -> list[str]:
        """Dtypes in which the cache holds what is otherwise this identity, sorted."""
        return sorted(
            info.metadata.identity.dtype
            for info in self.spaces()
            if info.metadata.identity.with_dtype(identity.dtype) == identity
        )

    def space(
        self,
        identity: Identity,
        model: str,
        engine_version: str,
        *,
        layout: Layout = VECTORS,
        store_text: bool = True,
    ) -> Space:
        """The space of an identity, new or old; nothing is written before its first row.

        Args:
            identity: With a settled dtype.
            model: The model as the user names it, for the table's name.
            engine_version: For the record in a new table's metadata.
            layout: Whether it holds vectors or scores.
            store_text: Whether new rows carry their texts.
        """
        fingerprint = identity.fingerprint()
        # Found by fingerprint: a directory that was moved keeps its identity, not its name.
        known = sorted(self.path.glob(f"*--{fingerprint}.lance"))
        name = f"{readable_name(model)[:_NAME_CHARACTERS]}--{identity.dtype}--{fingerprint}"
        metadata = SpaceMetadata(identity, model, engine_version, embcache_version())
        path = known[0] if known else self.path / f"{name}.lance"
        return Space(path, metadata, layout=layout, store_text=store_text)


def _try_writing(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise CacheError(
            f"cache_path={str(path)!r} cannot be written: {error.strerror or error}. Give a "
            "directory that can, or read_only=True to only read what is there."
        ) from error
