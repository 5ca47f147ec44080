"""How a loaded encoder differs from what its ModelMeta says, for mteb's result cache.

mteb files results under name, revision and what `mteb.get_model` was given. What was changed of
the object itself afterwards (an adapter, a length, prompts, weights) is not among that. So the
object is compared with one that mteb loads anew from name and revision; where that cannot be done,
with the defaults of its class, and its weights count as changed.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import types
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from embcache.engine.vllm_process import process_state_kept
from embcache.errors import ConfigError
from embcache.identity.function_digest import function_digest
from embcache.identity.identity import canonical
from embcache.identity.live_model import NO_NAME, LiveModel, differing, sentence_transformer
from embcache.identity.machine_memo import Memo

if TYPE_CHECKING:
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

# Parameters of constructors that change no vector, or must stand in no file's name.
_NO_SETTINGS = frozenset(
    {"api_key", "token", "device", "timeout", "max_retries", "verify_ssl", "batch_size"}
    | {"show_progress_bar", "num_proc", "cache_folder", "local_files_only", "name", "revision"}
    | {"model_name", "endpoint_url", "base_url"}
)
# Where mteb's wrappers keep a parameter under another name.
_ATTRIBUTES = {
    "prompt_dict": "prompts_dict",
    "apply_instruction_to_documents": "apply_instruction_to_passages",
}
# Not all that can be called: a tokenizer or module is no setting.
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_PACKAGES = ("mteb", "sentence-transformers", "transformers", "torch")


def changed_settings(
    encoder: Any, live: LiveModel, seen: Mapping[str, Any], meta: ModelMeta, revision: str
) -> dict[str, Any]:
    """What of a loaded encoder changes vectors and does not follow from its ModelMeta.

    To compare it, a model of Sentence Transformers may be loaded once more, on the CPU and from
    what is on this disk; what it is like is remembered for this machine.

    Args:
        encoder: The mteb encoder.
        live: The same encoder.
        seen: What its `look` returned a moment ago.
        meta: Its ModelMeta.
        revision: The commit or content that its name stands for; "" where that is not known.

    Returns:
        JSON-ready values by name: none for an encoder as mteb loads it.
    """
    state = _state(encoder, seen)
    loader_kwargs = {k: v for k, v in (meta.loader_kwargs or {}).items() if k != "device"}
    usual = None
    if "weights" in state:
        usual = _as_loaded(encoder, live, meta, revision, loader_kwargs)
    if usual is None:
        usual = _defaults(encoder) | _plain(loader_kwargs)
        state["state"] = live.changed()  # against what it was like when it was first seen
    elif "state" in usual:
        state["state"] = differing(usual["state"], state.get("state", {}))
    return {name: value for name, value in state.items() if value and usual.get(name) != value}


def _state(encoder: Any, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Weights, settings and prompts of an encoder, by name; what is not set is left out."""
    parameters = _parameters(encoder)
    found = {name: getattr(encoder, _ATTRIBUTES.get(name, name), None) for name in parameters}
    found |= seen.get("settings", {})
    inner = sentence_transformer(encoder)
    if inner is not None:
        found |= {"prompts": inner.prompts, "default_prompt_name": inner.default_prompt_name}
    found |= {name: seen.get(name) for name in ("weights", "state")}
    return {name: value for name, value in _plain(found).items() if value not in (None, {}, [])}


def _parameters(encoder: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of the encoder's classes that have a default and may change vectors."""
    own = [vars(kind)["__init__"] for kind in type(encoder).__mro__ if "__init__" in vars(kind)]
    return {
        name: parameter
        for constructor in reversed(own)  # a class hands on **kwargs to those behind it
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in _NO_SETTINGS
    }


def _defaults(encoder: Any) -> dict[str, Any]:
    """Values that an encoder's attributes have where its constructor is given nothing."""
    return _plain(
        {
            name: getattr(type(encoder), _ATTRIBUTES.get(name, name), parameter.default)
            for name, parameter in _parameters(encoder).items()
        }
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready values; what has no such form (a client, say) is no setting, and is left out."""
    plain = {}
    for name, value in values.items():
        try:
            one = (
                f"function {function_digest(value)}" if callable(value) else canonical(value, name)
            )
        except ConfigError as error:
            logger.debug("Not looked at for mteb's result cache: %s", error)
            continue
        plain[name] = json.loads(json.dumps(one))  # as it comes back from the memo
    return plain


def _as_loaded(
    encoder: Any,
    live: LiveModel,
    meta: ModelMeta,
    revision: str,
    loader_kwargs: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The state of an encoder that mteb loads from the same ModelMeta; None where it cannot."""
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel

    kinds = (SentenceTransformerEncoderWrapper, InstructSentenceTransformerModel)
    if type(encoder) not in kinds or meta.name in NO_NAME or not revision:
        return None
    memo, name = Memo(), str(meta.name)
    given = json.dumps(_plain(loader_kwargs), sort_keys=True)
    versions = (f"{package} {version(package)}" for package in _PACKAGES)
    key = "\0".join(("as loaded", type(encoder).__name__, name, revision, given, *versions))
    if (known := memo.get(key)) is not None:
        return dict(json.loads(known))
    if _bytes(encoder) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2:
        logger.info("%s is too large for this machine's free memory to be loaded twice.", name)
        return None
    logger.info("Loading %s once more, to see what of it was changed since it was loaded.", name)
    commit = None if os.path.isdir(name) else revision
    try:
        with process_state_kept():
            other = type(encoder)(
                name, commit, **{**loader_kwargs, "device": "cpu", "local_files_only": True}
            )
    except Exception as error:
        # Whatever a model's own code raises. The model counts as changed then, which costs a
        # result and no more.
        logger.info("It cannot be loaded from here (%s: %s).", type(error).__name__, error)
        return None
    state = _state(other, live.like(other).look())
    memo.put(key, json.dumps(state))
    return state


def _bytes(encoder: Any) -> int:
    inner = sentence_transformer(encoder)
    return sum(one.numel() * one.element_size() for one in inner.parameters())
