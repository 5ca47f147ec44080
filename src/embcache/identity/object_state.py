"""Everything that can be reached from a loaded model, by path: what may decide its vectors.

A list of settings to look at would miss whatever is not on it. So everything counts that an
attribute, an item or a closure leads to; short lists say what does not; and what cannot be looked
into is named, so that somebody else can care for it.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import json
import pathlib
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    import torch

# Attributes that decide no vector, whosever they are: where files came from, where and how fast
# something runs, what it is called, how results are compared, and secrets. A server's address is
# another one in each run of a job queue; what it serves is compared by canaries.
_IGNORED_NAMES = frozenset(
    {"name_or_path", "_name_or_path", "base_model_name_or_path", "_commit_hash", "cache_dir"}
    | {"transformers_version", "local_files_only", "vocab_file", "tokenizer_file", "init_kwargs"}
    | {"special_tokens_map_file", "model_card_data", "mteb_model_meta", "device", "_target_device"}
    | {"device_map", "hf_device_map", "batch_size", "num_workers", "num_proc", "pool", "verbose"}
    | {"show_progress_bar", "timeout", "max_retries", "api_key", "_api_key", "token", "hf_token"}
    | {"deprecation_warnings", "warnings_issued", "similarity_fn_name", "_similarity_fn_name"}
    | {"_similarity", "_similarity_pairwise", "_prompt_length_mapping", "_model_config"}
    | {"_model_card_text", "_device_map", "_accelerate_placement_hook", "_modules_placed"}
    | {"is_hpu_graph_enabled", "endpoint_url", "base_url", "api_base", "verify_ssl"}
)
# Of torch.nn.Module: parameters are hashed by `LiveModel.weights`, `training` is set by encode(),
# and hooks on gradients and state dicts have no part in a vector.
_IGNORED_OF_MODULES = frozenset(
    {"_parameters", "training", "_non_persistent_buffers_set", "_is_full_backward_hook"}
    | {"_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks"}
    | {"_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_forward_hooks_with_kwargs"}
    | {"_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"}
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # by numbers that differ from process to process
_IGNORED_KINDS = frozenset(
    {
        "builtins.module",
        "logging.Logger",
        "torch.device",
        "torch.Generator",
        "weakref.ReferenceType",
    }
    | {"_thread.lock", "_thread.RLock", "threading.Event", "threading.Condition", "tqdm.std.tqdm"}
    | {"_io.TextIOWrapper", "mteb.models.model_meta.ModelMeta"}
)
# Packages of connections and engines, whose objects lead to sockets, threads and clocks.
_CLOSED_PACKAGES = frozenset(
    {"openai", "httpx", "httpcore", "requests", "urllib3", "aiohttp", "anyio", "grpc", "boto3"}
    | {"botocore", "google", "cohere", "voyageai", "ssl", "socket", "asyncio", "concurrent"}
    | {"threading", "multiprocessing", "vllm", "onnxruntime", "openvino", "tensorflow", "jax"}
    | {"ray", "datasets", "pyarrow", "lancedb", "lance"}
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, decimal.Decimal)
_PLAIN_TOO = (datetime.date, datetime.time, datetime.timedelta, pathlib.PurePath, np.generic)
_SHORT = 80  # characters of a value that stands for itself
_SAMPLES = 16  # values of a tensor, or items of a large dict, by which a change is noticed
_LARGE = 500
_MOST = 200_000  # objects; a model has some thousands


@dataclass
class ObjectState:
    """What was found of one object.

    Attributes:
        leaves: A value, or a digest of it, by path: `model.0.max_seq_length`, say.
        closed: Types of what could not be looked into, by path.
    """

    leaves: dict[str, str] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)


class StateReader:
    """Reads one object's state, as often as asked; tensors are hashed only if they have changed.

    Args:
        ignored: Further names of attributes that decide no vector, of whatever object.
    """

    def __init__(self, ignored: frozenset[str] = frozenset()) -> None:
        self._ignored = _IGNORED_NAMES | ignored
        self._digests: dict[str, tuple[object, str]] = {}

    def read(self, root: Any) -> ObjectState:
        """Walk over everything that can be reached.

        Args:
            root: Any object.

        Returns:
            Its state, without its own type. Equal objects have equal leaves, in other processes
            too.
        """
        state = ObjectState()
        first: dict[int, str] = {}
        kept: list[Any] = []  # else another object may get the id of one that is gone
        waiting: deque[tuple[str, Any]] = deque([("", root)])
        while waiting:
            path, value = waiting.popleft()
            if _kind(value) in _IGNORED_KINDS:
                continue
            leaf = self._leaf(path, value)
            if leaf is None and id(value) in first:
                leaf = f"same as {first[id(value)]}"
            if leaf is not None:
                state.leaves[path] = leaf
                continue
            first[id(value)] = path
            kept.append(value)
            parts = self._parts(value) if len(kept) < _MOST else None
            if parts is None:
                state.closed[path] = _kind(value)
            else:
                prefix = f"{path}." if path else ""
                waiting.extend((f"{prefix}{name}", part) for name, part in parts)
        state.leaves.pop("type", None)
        return state

    def _leaf(self, path: str, value: Any) -> str | None:
        """A value or digest of what has no parts; None for what has."""
        if isinstance(value, enum.Enum):
            return f"{_kind(value)}.{value.name}"
        if isinstance(value, (*_PLAIN, *_PLAIN_TOO)):
            return _short(repr(value))
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"{value.dtype} {value.shape} {_hash(np.ascontiguousarray(value))}"
        if isinstance(value, re.Pattern):
            return _short(f"{value.pattern!r} {value.flags}")
        if isinstance(value, types.CodeType):
            return _code(value)
        if isinstance(value, (type, types.BuiltinFunctionType)) or _importable(value):
            return f"{value.__module__}.{value.__qualname__}"
        if _kind(value) in ("torch.dtype", "torch.layout") or isinstance(value, np.dtype):
            return str(value)
        if _kind(value) == "tokenizers.Tokenizer":
            return self._cached(path, _tokenizer_version(value), lambda: _tokenizer(value))
        if isinstance(value, (dict, list, tuple)) and len(value) > _LARGE:
            return self._large(path, value)
        if is_tensor(value):
            return self._cached(path, tensor_version(value), lambda: tensor_digest(value))
        return None

    def _large(self, path: str, value: Any) -> str | None:
        """A digest of a vocabulary, say; None where it holds more than plain values."""
        items = list(value.items()) if isinstance(value, dict) else value
        sample = [repr(item) for item in items[:: len(items) // _SAMPLES]]
        version = (id(value), len(items), sample)
        return self._cached(path, version, lambda: _plain_digest(value)) or None

    def _cached(self, path: str, version: object, digest: Callable[[], str]) -> str:
        known = self._digests.get(path)
        if known is None or known[0] != version:
            known = self._digests[path] = (version, digest())
        return known[1]

    def _parts(self, value: Any) -> list[tuple[str, Any]] | None:
        """What an object is made of, in an order of its own; None where that is not seen."""
        if isinstance(value, Mapping):
            return _sorted((_name(key), part) for key, part in value.items())
        if isinstance(value, (list, tuple, deque)):
            return [(str(number), part) for number, part in enumerate(value)]
        if isinstance(value, np.ndarray):  # of objects
            return [("shape", value.shape), ("items", value.reshape(-1).tolist())]
        if isinstance(value, Set):
            return _sorted((_name(part), None) for part in value)
        if isinstance(value, types.FunctionType):
            return list(_of_function(value))
        if isinstance(value, types.MethodType):
            return [("function", value.__func__), ("self", value.__self__)]
        if isinstance(value, functools.partial):
            return [("function", value.func), ("args", value.args), ("keywords", value.keywords)]
        if type(value).__module__.partition(".")[0] in _CLOSED_PACKAGES:
            return None
        attributes = _attributes(value)
        if attributes is None:
            return None
        ignored = self._ignored
        if _is_module(value):
            ignored = ignored | _IGNORED_OF_MODULES
            attributes |= attributes.pop("_modules", {})
            attributes |= {name: list(attributes.get(name, {}).values()) for name in _HOOKS}
        kept = ((name, part) for name, part in attributes.items() if name not in ignored)
        return [("type", type(value)), *_sorted(kept)]


def _plain_digest(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    """A digest of plain values, or of pairs of them; "" where there are others."""
    items = sorted(value.items(), key=repr) if isinstance(value, Mapping) else value
    if not all(isinstance(one, (*_PLAIN, tuple)) for one in items):
        return ""
    pairs = (part for item in items if isinstance(item, tuple) for part in item)
    if not all(isinstance(part, _PLAIN) for part in pairs):
        return ""
    return _hash("\n".join(map(repr, items)).encode("utf-8", "surrogatepass"))


def _sorted(parts: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted(parts, key=lambda part: part[0])


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _name(key: Any) -> str:
    """A key of a dict, or an element of a set; of objects their type alone, without address."""
    if isinstance(key, str):
        return _short(key)
    if isinstance(key, (*_PLAIN, *_PLAIN_TOO, enum.Enum, tuple)):
        return _short(repr(key))
    return _kind(key)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else _hash(text.encode("utf-8", "surrogatepass"))


def _hash(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _attributes(value: Any) -> dict[str, Any] | None:
    """Attributes that lie in the object itself; None where it has no place for any."""
    slots = [
        name
        for kind in type(value).__mro__
        for name in _as_tuple(vars(kind).get("__slots__", ()))
        if name not in ("__dict__", "__weakref__")
    ]
    stored = getattr(value, "__dict__", None)
    if stored is None and not slots:
        return None
    return {**{n: getattr(value, n) for n in slots if hasattr(value, n)}, **(stored or {})}


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function does, which no name leads to: its code, and the values it works with."""
    yield "code", function.__code__
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure {name}", cell.cell_contents
        except ValueError:  # nothing bound to the name yet
            continue
    for name in sorted(set(function.__code__.co_names) & function.__globals__.keys()):
        yield f"global {name}", function.__globals__[name]


def _importable(value: Any) -> bool:
    """Whether a name leads to the function: then its package says what it does, not its code."""
    if not isinstance(value, types.FunctionType) or value.__module__ in (None, "__main__"):
        return False
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return _hash(f"{code.co_code.hex()} {constants} {code.co_names}".encode())


def _tokenizer_version(tokenizer: Any) -> object:
    """Quick to find out, and another after whatever its setters change."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.post_processor)
    states = [None if part is None else part.__getstate__() for part in parts]
    return id(tokenizer), tokenizer.get_vocab_size(), states


def _tokenizer(tokenizer: Any) -> str:
    content = json.loads(tokenizer.to_str())
    for name in ("truncation", "padding"):  # set by each call, from attributes that are looked at
        content.pop(name, None)
    return _hash(json.dumps(content, sort_keys=True).encode())


def _is_module(value: Any) -> bool:
    package = sys.modules.get("torch")
    return package is not None and isinstance(value, package.nn.Module)


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch, which is not imported for that."""
    package = sys.modules.get("torch")
    return package is not None and isinstance(value, package.Tensor)


def tensor_version(tensor: torch.Tensor) -> object:
    """Something that is quick to find out and differs after any training step."""
    if tensor.device.type == "meta" or tensor.is_sparse:
        return id(tensor), tuple(tensor.shape)
    flat = tensor.detach().reshape(-1)
    sample = raw_bytes(flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES])
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tuple(tensor.shape), version, sample


def tensor_digest(tensor: torch.Tensor) -> str:
    """Shape, dtype, and hash over the values."""
    head = f"{tuple(tensor.shape)} {tensor.dtype}"
    return head if tensor.device.type == "meta" else f"{head} {_hash(raw_bytes(tensor))}"


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's values as they lie in memory."""
    import torch

    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    raw = dense.cpu().contiguous().reshape(-1).view(torch.uint8)
    return np.asarray(raw).tobytes() if raw.numel() else b""
