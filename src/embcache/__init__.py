"""embcache: every text is embedded once.

Drop-ins for mteb's vLLM wrappers that look every text up in a LanceDB/Arrow cache and send only
the misses to vLLM.
"""

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
from embcache.stats import EncodeStats

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
    "VllmCrossEncoderWrapper",
    "VllmEncoderWrapper",
    "compare_spaces",
]
