"""The store: a LanceDB database, one table a space."""

from embcache.store.database import Database, SpaceInfo
from embcache.store.rows import Rows
from embcache.store.space import Space

__all__ = ["Database", "Rows", "Space", "SpaceInfo"]
