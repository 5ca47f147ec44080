"""What mteb records about a model, found without the network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from embcache.errors import ConfigError
from embcache.identity.home import home_needed
from embcache.identity.hub import local_json
from embcache.identity.weights import ModelSource

if TYPE_CHECKING:
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)


def find_model_meta(
    model: str | ModelMeta, source: ModelSource, model_type: str = "dense"
) -> ModelMeta:
    """The ModelMeta of a model, without asking the hub, as mteb's own wrapper does.

    Args:
        model: Name or ModelMeta, as the user gave it.
        source: What it was resolved to.
        model_type: "dense" or "cross-encoder", for an empty ModelMeta.

    Returns:
        The ModelMeta that was given; or that of mteb's registry; or an empty one with name,
        revision, and the similarity function of the model's Sentence Transformers configuration
        (cosine where it has none, as mteb assumes).
    """
    if not isinstance(model, str):
        return model
    with home_needed():
        from mteb.models import ModelMeta
    from mteb.models.model_implementations import MODEL_REGISTRY
    from mteb.models.model_meta import ScoringFunction

    if not source.is_local and source.name in MODEL_REGISTRY:
        return MODEL_REGISTRY[source.name].model_copy(update={"revision": source.revision})
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
    """Read one of the model's JSON files, without the network.

    Args:
        source: The model.
        name: Name of the file.

    Returns:
        What the file holds; empty where it is neither in the directory nor in the hub cache.
    """
    return local_json(source.directory or source.name, name, source.revision)


REGISTERED = "registered"


def registered_prompts(meta: Any) -> dict[str, str] | None:
    """The prompts that mteb's registry holds for a model.

    Args:
        meta: The model's ModelMeta.

    Returns:
        Names to prompts (its loader's `model_prompts`); None if there are none.
    """
    prompts = (getattr(meta, "loader_kwargs", None) or {}).get("model_prompts")
    return dict(prompts) if prompts else None


def resolve_prompts(
    prompt_dict: Mapping[str, str] | str | None, registered: dict[str, str] | None, model: str
) -> dict[str, str] | None:
    """Turn the argument `prompt_dict` into prompts; warn of what looks like a mistake.

    Args:
        prompt_dict: As the user gave it: names to prompts, "registered", or None.
        registered: The prompts that mteb's registry holds for the model; None for none.
        model: The model's name, for messages.

    Returns:
        Names to prompts, or None where no prompts are applied.

    Raises:
        ConfigError: `prompt_dict` is "registered" and the registry holds no prompts for the model;
            or it is another string; or it maps a name to something else than a string.
    """
    if prompt_dict is None:
        if registered:
            logger.warning(
                "mteb's registry has prompts for %s (%s) and none are applied. Pass "
                'prompt_dict="registered" to apply them, or prompt_dict={} to keep it so.',
                model,
                ", ".join(f"{name}: {text!r:.60}" for name, text in registered.items()),
            )
        return None
    if isinstance(prompt_dict, str):
        if prompt_dict != REGISTERED:
            raise ConfigError(
                f'prompt_dict={prompt_dict!r} is neither a dict nor "{REGISTERED}". Give names to '
                'prompts, {"query": "query: ", "document": "passage: "}, say.'
            )
        if not registered:
            raise ConfigError(
                f'prompt_dict="{REGISTERED}", and mteb\'s registry holds no prompts for {model!r}. '
                'Give them: prompt_dict={"query": ..., "document": ...}.'
            )
        return registered
    wrong = {name: text for name, text in prompt_dict.items() if not isinstance(text, str)}
    if wrong:
        raise ConfigError(f"prompt_dict must map names to strings; not so: {wrong!r}.")
    if unknown := [name for name in prompt_dict if not _is_known(name)]:
        logger.warning(
            "prompt_dict has %s: no prompt type (query, document), task type or task of mteb's. "
            "Such a prompt is applied to a task of your own of that name, and to nothing else.",
            ", ".join(map(repr, unknown)),
        )
    return dict(prompt_dict)


def _is_known(name: str) -> bool:
    """Whether mteb looks a prompt up by this name, for some task that it has."""
    from mteb import get_task
    from mteb.abstasks.task_metadata import TaskType
    from mteb.types import PromptType

    kinds = [kind.value for kind in PromptType]
    if name in kinds:
        return True
    for kind in kinds:
        name = name.removesuffix(f"-{kind}")
    if name in get_args(TaskType):
        return True
    try:
        get_task(name)
    except KeyError:
        return False
    return True


def truncated_meta(meta: ModelMeta, dim: int) -> ModelMeta:
    """A ModelMeta under which mteb keeps results of cut vectors apart from those of full ones.

    It is what `mteb.get_model(..., embed_dim=...)` makes.

    Args:
        meta: The model's ModelMeta; it is left as it is.
        dim: Components of the cut vectors.
    """
    kwargs = {**(meta.experiment_kwargs or {}), "embed_dim": dim}
    return meta.model_copy(update={"embed_dim": dim, "experiment_kwargs": kwargs})


def warn_if_untrained(dim: int, meta: ModelMeta | None, config: Mapping[str, Any]) -> None:
    """Warn unless mteb's registry or the model's configuration says that it is Matryoshka.

    Args:
        dim: Number of components to keep.
        meta: The model's ModelMeta, whose `embed_dim` is a list for Matryoshka models.
        config: The model's config.json, in which vLLM looks for `is_matryoshka` and
            `matryoshka_dimensions`.
    """
    listed = getattr(meta, "embed_dim", None)
    dims = config.get("matryoshka_dimensions") or (listed if isinstance(listed, list) else None)
    if dims:
        if dim not in dims:
            logger.warning(
                "truncate_dim=%d is none of the sizes that this model was trained for: %s. Scores "
                "may be lower than they need to be.",
                dim,
                ", ".join(map(str, sorted(dims))),
            )
    elif not config.get("is_matryoshka"):
        logger.warning(
            "truncate_dim=%d: nothing says that %s was trained for it (Matryoshka: matryoshka_"
            "dimensions in its config.json, several embed_dim in mteb's registry). Vectors of "
            "models that were not lose quality when they are cut.",
            dim,
            getattr(meta, "name", "this model"),
        )
