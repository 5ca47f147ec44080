"""embcache: every text is embedded once.

Drop-ins for mteb's vLLM wrappers that look every text up in a LanceDB/Arrow cache and send only
the misses to vLLM; and `Cache`, to look into what they cached.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embcache.cache import Cache, CachedSpace
    from embcache.encoders.cached_encoder import CachedEncoder
    from embcache.encoders.lance_cache import LanceCache
    from embcache.encoders.vllm_cross_encoder import VllmCrossEncoderWrapper
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
    from embcache.errors import (
        CacheError,
        CacheFormatError,
        CacheWriteError,
        ConfigError,
        DamagedSpaceError,
        DtypeMismatchError,
        EmbcacheError,
        EngineError,
        EngineNotInstalledError,
        ForkedProcessError,
        InputError,
        MissingTextsError,
        ModelNotFoundError,
        NonFiniteError,
        NotCopiedError,
        RefusedTextsError,
        UnreachableError,
        WrongOutputError,
    )
    from embcache.identity.identity import Identity
    from embcache.maps.project import SpaceMap
    from embcache.pipeline.stats import EncodeStats
    from embcache.tools.check import CheckReport
    from embcache.tools.compact import CompactReport
    from embcache.tools.compare import SpaceComparison, TextCosine
    from embcache.tools.describe import SpaceDescription
    from embcache.tools.export import ExportReport
    from embcache.tools.import_ import ImportReport
    from embcache.tools.search import CachedText, Match
    from embcache.tools.transfer import TransferReport

# Read when lance is imported. Its warnings, of a hint that it could not write beside a commit, say,
# are lines of Rust's on the screen; what they lead to is raised, or nothing.
os.environ.setdefault("LANCE_LOG", "error")

_MODULES = {
    "Cache": "embcache.cache",
    "CacheError": "embcache.errors",
    "CacheFormatError": "embcache.errors",
    "CacheWriteError": "embcache.errors",
    "CachedEncoder": "embcache.encoders.cached_encoder",
    "CachedSpace": "embcache.cache",
    "CachedText": "embcache.tools.search",
    "ChangedModelError": "embcache.errors",
    "CheckReport": "embcache.tools.check",
    "CompactReport": "embcache.tools.compact",
    "ConfigError": "embcache.errors",
    "DamagedSpaceError": "embcache.errors",
    "DtypeMismatchError": "embcache.errors",
    "EmbcacheError": "embcache.errors",
    "EncodeStats": "embcache.pipeline.stats",
    "EngineError": "embcache.errors",
    "EngineNotInstalledError": "embcache.errors",
    "ExportReport": "embcache.tools.export",
    "ForkedProcessError": "embcache.errors",
    "Identity": "embcache.identity.identity",
    "ImportReport": "embcache.tools.import_",
    "InputError": "embcache.errors",
    "LanceCache": "embcache.encoders.lance_cache",
    "Match": "embcache.tools.search",
    "MissingTextsError": "embcache.errors",
    "ModelNotFoundError": "embcache.errors",
    "NonFiniteError": "embcache.errors",
    "NotCopiedError": "embcache.errors",
    "RefusedTextsError": "embcache.errors",
    "SpaceComparison": "embcache.tools.compare",
    "SpaceDescription": "embcache.tools.describe",
    "SpaceMap": "embcache.maps.project",
    "TextCosine": "embcache.tools.compare",
    "TransferReport": "embcache.tools.transfer",
    "VllmCrossEncoderWrapper": "embcache.encoders.vllm_cross_encoder",
    "VllmEncoderWrapper": "embcache.encoders.vllm_encoder",
    "UnreachableError": "embcache.errors",
    "WrongOutputError": "embcache.errors",
}

__all__ = [
    "Cache",
    "CacheError",
    "CacheFormatError",
    "CacheWriteError",
    "CachedEncoder",
    "CachedSpace",
    "CachedText",
    "ChangedModelError",
    "CheckReport",
    "CompactReport",
    "ConfigError",
    "DamagedSpaceError",
    "DtypeMismatchError",
    "EmbcacheError",
    "EncodeStats",
    "EngineError",
    "EngineNotInstalledError",
    "ExportReport",
    "ForkedProcessError",
    "Identity",
    "ImportReport",
    "InputError",
    "LanceCache",
    "Match",
    "MissingTextsError",
    "ModelNotFoundError",
    "NonFiniteError",
    "NotCopiedError",
    "RefusedTextsError",
    "SpaceComparison",
    "SpaceDescription",
    "SpaceMap",
    "TextCosine",
    "TransferReport",
    "UnreachableError",
    "VllmCrossEncoderWrapper",
    "VllmEncoderWrapper",
    "WrongOutputError",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: mteb takes three seconds, and not every command needs it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embcache.identity.home import home_needed

    with home_needed():
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
