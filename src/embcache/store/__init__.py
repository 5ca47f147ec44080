"""The store: a LanceDB database, one table a space."""

from embcache.store.database import Database, SpaceInfo
from embcache.store.rows import Column, Rows
from embcache.store.schema import SCORES, VECTORS, Layout
from embcache.store.space import Space

__all__ = ["SCORES", "VECTORS", "Column", "Database", "Layout", "Rows", "Space", "SpaceInfo"]
