"""Engines: what turns texts into vectors."""

from embcache.engine.base import Embedded, Engine, Prepared
from embcache.engine.vllm import VllmEngine, VllmScoringEngine

__all__ = ["Embedded", "Engine", "Prepared", "VllmEngine", "VllmScoringEngine"]
