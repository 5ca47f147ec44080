"""embcache: every text is embedded once.

Drop-ins for mteb's vLLM wrappers that look every text up in a LanceDB/Arrow cache and send only
the misses to vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embcache.encoders.cached_encoder import CachedEncoder
    from embcache.encoders.lance_cache import LanceCache
    from embcache.encoders.vllm_cross_encoder import VllmCrossEncoderWrapper
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
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
    from embcache.maps.project import SpaceMap, map_space
    from embcache.pipeline.stats import EncodeStats
    from embcache.tools.compare import SpaceComparison, TextCosine, compare_spaces

_MODULES = {
    "CacheError": "embcache.errors",
    "CacheFormatError": "embcache.errors",
    "CachedEncoder": "embcache.encoders.cached_encoder",
    "ConfigError": "embcache.errors",
    "DtypeMismatchError": "embcache.errors",
    "EmbcacheError": "embcache.errors",
    "EncodeStats": "embcache.pipeline.stats",
    "EngineError": "embcache.errors",
    "EngineNotInstalledError": "embcache.errors",
    "InputError": "embcache.errors",
    "LanceCache": "embcache.encoders.lance_cache",
    "MissingTextsError": "embcache.errors",
    "ModelNotFoundError": "embcache.errors",
    "NonFiniteError": "embcache.errors",
    "SpaceComparison": "embcache.tools.compare",
    "SpaceMap": "embcache.maps.project",
    "TextCosine": "embcache.tools.compare",
    "VllmCrossEncoderWrapper": "embcache.encoders.vllm_cross_encoder",
    "VllmEncoderWrapper": "embcache.encoders.vllm_encoder",
    "compare_spaces": "embcache.tools.compare",
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
    "NonFiniteError",
    "SpaceComparison",
    "SpaceMap",
    "TextCosine",
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
