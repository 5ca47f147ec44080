"""What mteb records about a model, found without the network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embcache.source import ModelSource

if TYPE_CHECKING:
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)


def find_model_meta(
    model: str | ModelMeta, source: ModelSource, model_type: str = "dense"
) -> ModelMeta:
    """The ModelMeta of a model.

    The one that was given; or that of mteb's registry; or an empty one with name, revision, and
    the similarity function of the model's Sentence Transformers configuration (cosine, where it
    has none, as mteb assumes). mteb's own wrapper asks the hub for more, which takes a network.

    Args:
        model: As the user gave it.
        source: What it was resolved to.
        model_type: "dense" or "cross-encoder", for an empty ModelMeta.
    """
    if not isinstance(model, str):
        return model
    from mteb.models import ModelMeta
    from mteb.models.model_implementations import MODEL_REGISTRY
    from mteb.models.model_meta import ScoringFunction

    if not source.is_local and model in MODEL_REGISTRY:
        return MODEL_REGISTRY[model].model_copy(update={"revision": source.revision})
    config = model_config(source, "config_sentence_transformers.json")
    return ModelMeta.create_empty(
        overwrites={
            "name": source.name,
            "revision": source.revision,
            "model_type": [model_type],
            "similarity_fn_name": ScoringFunction.from_str(
                config.get("similarity_fn_name") or "cosine"
            ),
        }
    )


def model_config(source: ModelSource, name: str = "config.json") -> dict[str, Any]:
    """One of the model's JSON files, without the network; empty where it is not here."""
    path: str | Path | None = Path(source.name).expanduser() / name
    if not source.is_local:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.name, name, revision=source.revision)
        path = cached if isinstance(cached, str) else None
    if path is None or not Path(path).is_file():
        return {}
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config
