"""embcache: every text is embedded once.

Drop-ins for mteb's vLLM wrappers that look every text up in a LanceDB/Arrow cache and send only
the misses to vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embcache.cached_encoder import CachedEncoder
    from embcache.compare import Moved, SpaceComparison, compare_spaces
    from embcache.cross_encoder import VllmCrossEncoderWrapper
    from embcache.encoders import VllmEncoderWrapper
    from embcache.errors import (
        CacheError,
        CacheFormatError,
        ConfigError,
        DtypeMismatchError,
        EmbcacheError,
        EngineError,
        EngineNotInstalledError,
        InputError,
        MissingTextsError,
        ModelNotFoundError,
        NonFiniteError,
    )
    from embcache.lance_cache import LanceCache
    from embcache.maps.project import SpaceMap, map_space
    from embcache.stats import EncodeStats

_MODULES = {
    "CacheError": "embcache.errors",
    "CacheFormatError": "embcache.errors",
    "CachedEncoder": "embcache.cached_encoder",
    "ConfigError": "embcache.errors",
    "DtypeMismatchError": "embcache.errors",
    "EmbcacheError": "embcache.errors",
    "EncodeStats": "embcache.stats",
    "EngineError": "embcache.errors",
    "EngineNotInstalledError": "embcache.errors",
    "InputError": "embcache.errors",
    "LanceCache": "embcache.lance_cache",
    "MissingTextsError": "embcache.errors",
    "ModelNotFoundError": "embcache.errors",
    "Moved": "embcache.compare",
    "NonFiniteError": "embcache.errors",
    "SpaceComparison": "embcache.compare",
    "SpaceMap": "embcache.maps.project",
    "VllmCrossEncoderWrapper": "embcache.cross_encoder",
    "VllmEncoderWrapper": "embcache.encoders",
    "compare_spaces": "embcache.compare",
    "map_space": "embcache.maps.project",
}

__all__ = [
    "CacheError",
    "CacheFormatError",
    "CachedEncoder",
    "ConfigError",
    "DtypeMismatchError",
    "EmbcacheError",
    "EncodeStats",
    "EngineError",
    "EngineNotInstalledError",
    "InputError",
    "LanceCache",
    "MissingTextsError",
    "ModelNotFoundError",
    "Moved",
    "NonFiniteError",
    "SpaceComparison",
    "SpaceMap",
    "VllmCrossEncoderWrapper",
    "VllmEncoderWrapper",
    "compare_spaces",
    "map_space",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: mteb takes three seconds, and not every command needs it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
