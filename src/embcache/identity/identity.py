"""Identity: everything that decides a vector's bytes, apart from prompt and text.

This module is the one place that says which arguments are part of it:

* `SPEED_ARGUMENTS` only change speed, memory or where files lie. Not in the identity.
* `VECTOR_DEFAULTS` change vectors; at their default they are left out, so that saying a
  default aloud makes no new space.
* Every other engine argument counts as changing the vector, whatever its value: embcache does
  not know it, and a space too many costs time while a wrong hit costs the result.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

import xxhash

from embcache.errors import CacheFormatError, ConfigError, NewerFormatError, shown
from embcache.identity.strict_json import StrictJsonError, read_object

SPEED_ARGUMENTS = frozenset(
    {
        # arguments of mteb's wrapper
        "max_num_seqs",
        "max_num_batched_tokens",
        "renderer_num_workers",
        "tensor_parallel_size",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "enforce_eager",
        # other arguments of vllm.EngineArgs
        "block_size",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_log_requests",
        "hf_token",
        "kv_cache_memory_bytes",
        "fully_sharded_loras",
        "max_cpu_loras",
        "max_lora_rank",
        "max_loras",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "served_model_name",
        "swap_space",
        "use_tqdm_on_load",
    }
)

VECTOR_DEFAULTS: dict[str, Any] = {
    "max_model_len": None,
    "head_dtype": None,
    "hf_overrides": None,
    "pooler_config": None,
    "quantization": None,
    "trust_remote_code": True,
}

_SECRETS = frozenset(
    {"hf_token", "use_auth_token", "access_token", "api_key", "password", "secret"}
    | {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
)
"""Never in an identity, which everybody reads who reads the cache, however deep they stand."""

_NOT_OURS = "embcache did not write this. Move the table away; its texts are encoded again."

LOCAL = "local"
"""What stands for a directory in an identity: its name decides no vector."""

DTYPES = {
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "auto": "auto",
}
"""What the user may write (vLLM's synonyms), and the one name for each that identities use."""


@dataclass(frozen=True)
class PromptHandling:
    """How prompt and text become a model's input, and what of that stands in a key.

    Attributes:
        name: What an identity holds. Names differ, so two handlings never share rows.
        in_key: What the key has in the prompt's place: "recorded" for the prompt as the table's
            columns record it, "none" for nothing, "unknown" for something that no column holds,
            so that a row's key cannot be computed again from the row.
    """

    name: str
    in_key: Literal["recorded", "none", "unknown"]


PROMPT_AND_TEXT = PromptHandling("prompt + text", "recorded")
"""How the vLLM encoder does it."""

PREFIXED_PAIR = PromptHandling(
    "score(query_prefix + query, document_prefix + document)", "recorded"
)
"""How the vLLM cross-encoder does it."""

ITEM_ALONE = PromptHandling("by directory", "none")
"""How `LanceCache` does it, which is told neither model nor prompt."""


@dataclass(frozen=True)
class Identity:
    """What decides a vector's bytes, apart from prompt and text.

    Attributes:
        model: Hub name, or `local` for a directory, whose name decides no vector.
        revision: Commit of the hub snapshot, or a hash over the directory's files.
        dtype: What the engine computes in: float32, float16 or bfloat16; `auto` only in an
            identity that still has to be settled.
        arguments: Engine arguments that change vectors, see `vector_arguments`.
        engine: What computes the vectors.
        prompt_handling: How prompt and text become the engine's input, a `PromptHandling.name`.
        truncation: How a text that is too long for the model is cut, in words.
    """

    model: str
    revision: str
    dtype: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "vllm"
    prompt_handling: str = PROMPT_AND_TEXT.name
    truncation: str = "vllm truncate_prompt_tokens=-1"

    def to_json(self) -> str:
        """Canonical JSON (sorted names, no spaces, ASCII): equal for equal identities."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """Read what `to_json` returned, and nothing else: it may come from anybody's cache.

        Args:
            text: The JSON.

        Raises:
            NewerFormatError: It has a field that this embcache does not know.
            CacheFormatError: It lacks a field, or has one of another type; or it is no JSON within
                the bounds of `strict_json`.
        """
        try:
            fields = read_object(text)
        except StrictJsonError as error:
            raise CacheFormatError(f"The identity {error}. {_NOT_OURS}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if fewer := sorted(known - fields.keys()):
            raise CacheFormatError(f"The identity lacks the fields {shown(fewer)}. {_NOT_OURS}")
        if more := sorted(fields.keys() - known):
            raise NewerFormatError(
                f"The identity has fields that this embcache does not know: {shown(more)}. A newer "
                "one wrote it: upgrade with `pip install -U embcache`, or use another cache_path."
            )
        for name, value in fields.items():
            wanted = dict if name == "arguments" else str
            if not isinstance(value, wanted):
                raise CacheFormatError(
                    f"The identity's {name} is a {type(value).__name__}, {shown(value)}, not a "
                    f"{wanted.__name__}. {_NOT_OURS}"
                )
        if not re.fullmatch(r"\w{1,40}", dtype := fields["dtype"], re.ASCII):
            # It is part of a table's name: `../..` would be a place outside of the cache.
            raise CacheFormatError(
                f"The identity's dtype, {shown(dtype)}, is not the name of one. {_NOT_OURS}"
            )
        return cls(**fields)

    def to_bytes(self) -> bytes:
        """The bytes that go into every key: `to_json` as ASCII."""
        return self.to_json().encode()

    def fingerprint(self) -> str:
        """Ten hex digits of xxh3-64, for table names.

        Two identities may share them, so a space's whole identity is compared when it is opened.
        """
        return xxhash.xxh3_64_hexdigest(self.to_bytes())[:10]

    def with_dtype(self, dtype: str) -> Identity:
        """The same identity in another dtype.

        Args:
            dtype: One of the names in `DTYPES.values()`.
        """
        return dataclasses.replace(self, dtype=dtype)

    def with_arguments(self, arguments: Mapping[str, Any]) -> Identity:
        """The same identity with other arguments.

        Args:
            arguments: All engine arguments that change vectors, in canonical form.
        """
        return dataclasses.replace(self, arguments=arguments)


def vector_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments that belong in the identity, in canonical form.

    Args:
        arguments: Engine arguments under mteb's and vLLM's names, without model, revision and
            dtype, which have fields of their own.

    Returns:
        JSON-ready values by name; those at their default are left out. `head_dtype` is merged
        into `hf_overrides`, which is where mteb and vLLM put it.

    Raises:
        ConfigError: A value has no canonical form, because it is a function, say.
    """
    kept = {
        name: value
        for name, value in arguments.items()
        if name not in SPEED_ARGUMENTS
        and not (name in VECTOR_DEFAULTS and value == VECTOR_DEFAULTS[name])
    }
    head_dtype = kept.pop("head_dtype", None)
    if head_dtype is not None:
        kept["hf_overrides"] = {**(kept.get("hf_overrides") or {}), "head_dtype": head_dtype}
    settled = {name: _without_secrets(canonical(value, name)) for name, value in kept.items()}
    if isinstance(pooler := settled.get("pooler_config"), dict):
        # A dict says the same as a PoolerConfig, whose unset fields are None.
        settled["pooler_config"] = {k: v for k, v in pooler.items() if v is not None}
    for name in ("hf_overrides", "pooler_config"):
        if not settled.get(name, True):
            del settled[name]
    return settled


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {k: _without_secrets(item) for k, item in value.items() if k not in _SECRETS}
    return value


def normalize_dtype(dtype: object) -> str:
    """The one name that identities use for a dtype.

    Args:
        dtype: One of vLLM's names (`half`, say), or a torch dtype.

    Raises:
        ConfigError: vLLM knows no such dtype.
    """
    name = str(dtype).removeprefix("torch.").lower()
    if name not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown. Use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def short_name(model: str) -> str:
    """What a model is called where people read it.

    Args:
        model: Hub name, or path of a directory.

    Returns:
        The hub name; of a path, its last two parts, joined by `/`.
    """
    parts = [part for part in PurePath(model).parts if part not in ("/", "..")]
    return "/".join(parts[-2:]) or model


def readable_name(model: str) -> str:
    """A model's short name in characters that a table's name can have.

    Args:
        model: Hub name, or path of a directory.
    """
    name = short_name(model).replace("/", "--")
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"


def canonical(value: Any, name: str) -> Any:
    """JSON-ready form of an argument's value, the same for equal values.

    Args:
        value: The value.
        name: The argument's name, for the message of the error.

    Raises:
        ConfigError: The value has no such form, because it is a function, say.
    """
    if isinstance(value, enum.Enum):
        return canonical(value.value, name)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): canonical(v, f"{name}[{k!r}]") for k, v in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [canonical(v, name) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((canonical(v, name) for v in value), key=repr)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical_dataclass(value, name)
    if callable(to_dict := getattr(value, "to_dict", None)):  # transformers' configurations
        return canonical(to_dict(), name)
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return normalize_dtype(value)
    raise ConfigError(
        f"{name}={value!r} cannot be part of a cache key: {type(value).__name__} has no canonical "
        "form. Pass plain values (numbers, strings, lists, dicts), or cache_path=None to run "
        "without a cache."
    )


def _canonical_dataclass(value: Any, name: str) -> dict[str, Any]:
    """The fields that differ from a fresh instance, so that a new vLLM field changes nothing."""
    required = any(
        f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(value)
    )
    fresh = None if required else type(value)()
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {
        key: canonical(item, f"{name}.{key}")
        for key, item in sorted(fields.items())
        if fresh is None or item != getattr(fresh, key, None)
    }
