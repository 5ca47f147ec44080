"""What decides the vectors of a model that is already loaded: weights, dtype and settings.

Names are not enough for these: a model that was trained a little further in this process still
has the name and revision of the one it was loaded from.
"""

from __future__ import annotations

import json
import logging
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from embcache.errors import ConfigError
from embcache.identity.identity import Identity, canonical
from embcache.identity.machine_memo import Memo
from embcache.identity.object_state import StateReader, tensor_digest, tensor_version
from embcache.identity.weights import identify_directory

if TYPE_CHECKING:
    import torch

    from embcache.identity.prompt_rules import PromptRule

logger = logging.getLogger(__name__)

UNKNOWN_DTYPE = "unknown"

# Settings of mteb's own wrappers that change vectors and are not in their ModelMeta.
_WRAPPER_SETTINGS = ("max_length", "use_chat_template")
_VLLM_SETTINGS = ("max_model_len", "quantization")


@dataclass
class _History:
    """What an encoder was like, for as long as it lives, whoever looks at it.

    Attributes:
        original: Values by path as they were at the first look.
        first: The same, but for what somebody else than the encoder changed since; None before the
            first look.
        last: The same after the encoder's last call, or the last look.
    """

    original: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] | None = None
    last: dict[str, str] = field(default_factory=dict)

    def look(self, now: dict[str, str]) -> dict[str, str]:
        """Take in what has changed since the last look; returns `first`."""
        if self.first is None:
            self.original = self.last = now
            self.first = dict(now)
        for path in now.keys() | self.last.keys():
            if now.get(path) == self.last.get(path):
                continue
            if path in now:
                self.first[path] = now[path]
            else:
                self.first.pop(path, None)
        self.last = now
        return self.first


_histories: weakref.WeakKeyDictionary[Any, _History] = weakref.WeakKeyDictionary()


def _history_of(encoder: Any) -> _History:
    try:
        return _histories.setdefault(encoder, _History())
    except TypeError:  # cannot be hashed, or referred to weakly
        return _History()


class LiveModel:
    """A loaded encoder, looked at from outside.

    Args:
        encoder: An mteb encoder; PyTorch modules are looked for in its attributes.
        ignored: Names of attributes that decide no vector, or stand in each key.

    Attributes:
        closed: What the last `state` could not look into: types by path.
    """

    def __init__(self, encoder: Any, ignored: frozenset[str] = frozenset()) -> None:
        self._encoder = encoder
        self._weights_version: object = None
        self._weights: str | None = None
        self._ignored = ignored
        self._reader = StateReader(ignored)
        self._history = _history_of(encoder)
        self.closed: dict[str, str] = {}

    def dtype(self) -> str:
        """What the model computes in.

        Returns:
            The dtype of its first floating point weight, of mteb's vLLM wrapper the engine's:
            `float32`, say; "unknown" where no weights are to be seen.
        """
        config = _vllm_config(self._encoder)
        if config is not None:
            return str(config.dtype).removeprefix("torch.")
        for weight in self._parameters():
            if weight.is_floating_point():
                return str(weight.dtype).removeprefix("torch.")
        return UNKNOWN_DTYPE

    def look(self) -> dict[str, Any]:
        """What the model is like now, for its identity.

        Returns:
            `weights`, `settings` in canonical form, and `state`; what there is none of is left out.

        Raises:
            ConfigError: A setting has no canonical form.
        """
        found = {
            "weights": self.weights(),
            "settings": canonical(self.settings(), "settings"),
            "state": self.state(),
        }
        return {name: value for name, value in found.items() if value}

    def like(self, encoder: Any) -> LiveModel:
        """Another encoder, looked at in the same way."""
        return LiveModel(encoder, self._ignored)

    def changed(self) -> dict[str, str]:
        """Those of `state` that somebody else than the encoder changed since it was first seen."""
        return differing(_grouped(self._history.original), _grouped(self._history.first or {}))

    def weights(self) -> str | None:
        """Hash over all weights; computed again only if they have changed since the last call.

        Returns:
            32 hex digits; None where no weights are to be seen.
        """
        version = self._weights_state()
        if version != self._weights_version:
            self._weights_version, self._weights = version, self._hash_weights()
        return self._weights

    def state(self) -> dict[str, str]:
        """Digests of everything else that can be reached from the encoder.

        What the encoder itself changed while it encoded (a counter, say, or something made at the
        first call) stays as it was when it was first seen; `settle` tells which that is.

        Returns:
            16 hex digits by the beginning of the path, `model.0`, say.
        """
        found = self._reader.read(self._encoder)
        self.closed = found.closed
        return _grouped(self._history.look(found.leaves))

    def settle(self) -> None:
        """Take what has changed since the last `state` for the encoder's own doing."""
        self._history.last = self._reader.read(self._encoder).leaves

    def settings(self) -> dict[str, Any]:
        """Settings that change vectors, by name, as far as the kind of model is known.

        Returns:
            Values as they are in the model, not in canonical form; no settings for a kind of
            model that is not known.
        """
        found = {
            name: getattr(self._encoder, name)
            for name in _WRAPPER_SETTINGS
            if getattr(self._encoder, name, None) is not None
        }
        config = _vllm_config(self._encoder)
        if config is not None:
            found |= {name: getattr(config, name, None) for name in _VLLM_SETTINGS}
            found["pooler_config"] = getattr(config, "pooler_config", None)
        inner = sentence_transformer(self._encoder)
        if inner is not None:
            found |= {
                "backend": inner.get_backend() if hasattr(inner, "get_backend") else "torch",
                "max_seq_length": inner.max_seq_length,
                "truncate_dim": inner.truncate_dim,
                "modules": [{"type": type(module).__name__, **_config(module)} for module in inner],
            }
        return found

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        torch = sys.modules.get("torch")
        if torch is None:
            return
        parts = (self._encoder, *getattr(self._encoder, "__dict__", {}).values())
        for part in parts:
            if isinstance(part, torch.nn.Module):
                yield from part.parameters()

    def _weights_state(self) -> object:
        """Something that is quick to find out and differs after any training step."""
        return [tensor_version(one) for one in self._parameters() if one.device.type != "meta"]

    def _hash_weights(self) -> str | None:
        digests = sorted(  # whatever the order in which modules list their weights
            tensor_digest(one) for one in self._parameters() if one.device.type != "meta"
        )
        return xxhash.xxh3_128_hexdigest("\n".join(digests).encode()) if digests else None


def sentence_transformer(encoder: Any) -> Any:
    """The SentenceTransformer inside an mteb encoder.

    Args:
        encoder: Any mteb encoder.

    Returns:
        The encoder's attribute `model`, if that is a SentenceTransformer; otherwise None.
    """
    package = sys.modules.get("sentence_transformers")
    inner = getattr(encoder, "model", None)
    return inner if package and isinstance(inner, package.SentenceTransformer) else None


def hugging_face_config(encoder: Any) -> dict[str, Any]:
    """The Hugging Face configuration of an mteb encoder's SentenceTransformer.

    Args:
        encoder: Any mteb encoder.

    Returns:
        The configuration's fields by name; none for other kinds of encoders.
    """
    inner = sentence_transformer(encoder)
    first = None if inner is None else next(iter(inner), None)
    config = getattr(getattr(first, "auto_model", None), "config", None)
    return {} if config is None else dict(config.to_dict())


def _vllm_config(encoder: Any) -> Any:
    """The engine's model configuration, of mteb's own vLLM wrapper; None for other encoders."""
    engine = getattr(getattr(encoder, "llm", None), "llm_engine", None)
    return getattr(engine, "model_config", None)


def _config(module: Any) -> Mapping[str, Any]:
    get = getattr(module, "get_config_dict", None)
    # default=str: modules of others may hold more than JSON can.
    return {} if get is None else dict(json.loads(json.dumps(get(), default=str)))


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Those of `LiveModel.state` that differ, as they are now; "" for what is gone."""
    return {n: now.get(n, "") for n in {**before, **now} if now.get(n) != before.get(n)}


_GROUP_PARTS = 2


def _grouped(leaves: Mapping[str, str]) -> dict[str, str]:
    """One digest for all leaves whose paths begin alike: short, and it says where to look."""
    groups: dict[str, list[str]] = {}
    for path in sorted(leaves):
        name = ".".join(path.split(".")[:_GROUP_PARTS])
        groups.setdefault(name, []).append(f"{path}={leaves[path]}")
    return {
        name: xxhash.xxh3_64_hexdigest("\n".join(lines).encode("utf-8", "surrogatepass"))
        for name, lines in groups.items()
    }


NO_NAME = (None, "", "no_model_name/available")
_NO_REVISION = (None, "", "no_revision_available")


def base_identity(
    model: Any, meta: Any, live: LiveModel, rule: PromptRule, extra: Mapping[str, Any] | None
) -> Identity:
    """The part of a loaded encoder's identity that does not depend on the call.

    Args:
        model: An mteb encoder.
        meta: Its ModelMeta.
        live: The same encoder's weights and settings.
        rule: How it finds its prompts.
        extra: What the user says decides the vectors besides; plain values by name.

    Returns:
        The identity, without weights, settings and encode kwargs, which may change between calls.

    Raises:
        ConfigError: The ModelMeta has neither name nor revision, and `extra` is empty; or a value
            has no canonical form.
    """
    name = None if meta.name in NO_NAME else str(meta.name)
    revision = None if meta.revision in _NO_REVISION else str(meta.revision)
    if name is None and revision is None and not extra:
        raise ConfigError(
            f"{type(model).__name__} has neither name nor revision in its mteb_model_meta, so its "
            "vectors could not be told from another model's. Say what it is, and change that when "
            'it changes: CachedEncoder(model, identity={"model": "mine", "version": 1}).'
        )
    if name is not None and Path(name).is_dir():  # its path decides nothing, its files do
        inner = sentence_transformer(model)
        backend = getattr(inner, "get_backend", lambda: None)()
        name, revision = identify_directory(Path(name), Memo(), exports=backend != "torch")
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
        prompt_handling=rule.handling.name,
        truncation="the model's own",
    )
