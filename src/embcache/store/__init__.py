"""The store: a LanceDB database, one table a space."""

from embcache.store.base import Part, Snapshot, Store
from embcache.store.database import Database, open_listed, open_space
from embcache.store.location import Location
from embcache.store.overlay import Overlay
from embcache.store.reader import Reader
from embcache.store.rows import Column, RowFilter, Rows
from embcache.store.schema import SCORES, VECTORS, Layout
from embcache.store.snapshot import SpaceSnapshot
from embcache.store.space import Space
from embcache.store.verify import Verified

__all__ = [
    "SCORES",
    "VECTORS",
    "Column",
    "Database",
    "Layout",
    "Location",
    "Overlay",
    "Part",
    "Reader",
    "RowFilter",
    "Rows",
    "Snapshot",
    "Space",
    "SpaceSnapshot",
    "Store",
    "Verified",
    "open_listed",
    "open_space",
]
