"""Which models `CachedEncoder` wraps, and what they are called."""

from __future__ import annotations

from typing import Any

from embcache.encoders.vllm_base import VllmWrapperBase
from embcache.errors import ConfigError
from embcache.identity.live_model import NO_NAME


def as_mteb_encoder(model: Any) -> Any:
    """The model as mteb would wrap it.

    Args:
        model: An mteb encoder, or a SentenceTransformer.

    Raises:
        ConfigError: The model is no encoder, or its vectors cannot be cached by text.
    """
    from mteb.models import CompressionWrapper, SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    kind = type(model).__name__
    if isinstance(model, str):
        raise ConfigError(
            f"model={model!r} is a name. CachedEncoder wraps a loaded encoder: "
            f"CachedEncoder(mteb.get_model({model!r})); for vLLM, VllmEncoderWrapper({model!r})."
        )
    if isinstance(model, VllmWrapperBase):
        raise ConfigError(f"{kind} has a cache already. Use it as it is.")
    if isinstance(model, CompressionWrapper):
        raise ConfigError(
            "CompressionWrapper's vectors depend on the other texts of a call, so they cannot be "
            "cached by text. Wrap the other way round: CompressionWrapper(CachedEncoder(model))."
        )
    if isinstance(model, SentenceTransformer):
        return SentenceTransformerEncoderWrapper(model)
    if not callable(getattr(model, "encode", None)):
        hint = ""
        if hasattr(model, "predict"):
            hint = " For cross-encoders on vLLM there is VllmCrossEncoderWrapper."
        raise ConfigError(f"{kind} is no mteb encoder: it has no encode().{hint}")
    return model


def display_name(model: Any, meta: Any) -> str:
    """What a model is called in tables' names and messages.

    Args:
        model: An mteb encoder.
        meta: Its ModelMeta.
    """
    return type(model).__name__ if meta.name in NO_NAME else str(meta.name)
