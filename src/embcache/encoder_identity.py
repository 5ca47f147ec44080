"""Which wrapped encoders can be told apart, and by what."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embcache.applied_prompt import PromptRule
from embcache.errors import ConfigError
from embcache.identity import Identity, canonical
from embcache.live_model import LiveModel
from embcache.memo import Memo
from embcache.source import hash_directory
from embcache.vllm_base import VllmWrapperBase

logger = logging.getLogger(__name__)

_NO_NAME = (None, "", "no_model_name/available")
_NO_REVISION = (None, "", "no_revision_available")


def as_mteb_encoder(model: Any) -> Any:
    """The model as mteb would wrap it.

    Raises:
        ConfigError: It is no encoder, or its vectors cannot be cached by text.
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


def base_identity(
    model: Any, meta: Any, live: LiveModel, rule: PromptRule, extra: Mapping[str, Any] | None
) -> Identity:
    """What is known of the identity before the first call.

    Args:
        model: An mteb encoder.
        meta: Its ModelMeta.
        live: Its weights and settings.
        rule: How it finds its prompts.
        extra: What the user adds.

    Raises:
        ConfigError: Neither name nor revision is known, and nothing is added.
    """
    name = None if meta.name in _NO_NAME else str(meta.name)
    revision = None if meta.revision in _NO_REVISION else str(meta.revision)
    if name is None and revision is None and not extra:
        raise ConfigError(
            f"{type(model).__name__} has neither name nor revision in its mteb_model_meta, so its "
            "vectors could not be told from another model's. Say what it is, and change that when "
            'it changes: CachedEncoder(model, identity={"model": "mine", "version": 1}).'
        )
    if name is not None and Path(name).is_dir():  # its path decides nothing, its files do
        name, revision = "local", hash_directory(Path(name), Memo())
    if revision is None and live.weights() is None and not extra:
        logger.warning(
            "%s has no revision: if other weights are served under that name one day, the cache "
            'will not notice. CachedEncoder(model, identity={"revision": ...}) makes it.',
            name,
        )
    if not rule.known:
        logger.info(
            "How %s applies prompts is not known: its texts are cached for each task, subset, "
            "split and prompt type. applied_prompt=... shares them.",
            type(model).__name__,
        )
    arguments = {
        "experiment_kwargs": canonical(dict(meta.experiment_kwargs or {}), "experiment_kwargs"),
        "identity": canonical(dict(extra or {}), "identity"),
    }
    return Identity(
        name or "",
        revision or "",
        live.dtype(),
        {key: value for key, value in arguments.items() if value},
        engine=f"mteb {type(model).__qualname__}",
        prompt_handling=rule.handling,
        truncation="the model's own",
    )


def display_name(model: Any, meta: Any) -> str:
    """For table names and messages."""
    return type(model).__name__ if meta.name in _NO_NAME else str(meta.name)
