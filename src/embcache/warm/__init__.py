"""Filling a cache over corpora of any size."""

from embcache.warm.plan import Plan, plan
from embcache.warm.run import Warmer, WarmStats
from embcache.warm.sources import BadRow, Columns, Dialect, TextBatch
from embcache.warm.streams import Shard, select

__all__ = [
    "BadRow",
    "Columns",
    "Dialect",
    "Plan",
    "Shard",
    "TextBatch",
    "WarmStats",
    "Warmer",
    "plan",
    "select",
]
