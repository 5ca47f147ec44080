"""The arguments of embcache's vLLM wrappers, each said once: its name, type, default and meaning.

The wrappers take them as keyword arguments and show them in their signatures, see `takes`; the
command line makes an option of each. Importing this module imports neither mteb, vllm nor lance.
"""

# No `from __future__ import annotations`: the fields' types are looked at while embcache runs.

import dataclasses
import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION
from embcache.engine.vllm_arguments import check_engine_arguments
from embcache.errors import ConfigError

if TYPE_CHECKING:
    from mteb.types import PromptType
    from vllm.config import PoolerConfig

    from embcache.encoders.upstreams import Place

Dtype = Literal["half", "float16", "float", "float32", "bfloat16", "auto"]
HeadDtype = Literal["model", Dtype]

_DOC = "doc"
# What some wrappers take beside the arguments here.
_OTHER_NAMES = ("make_engine", "query_prefix", "document_prefix")
_MISSPELT = 0.8  # similarity of two names, from 0 to 1, from which one is taken for the other

F = TypeVar("F", bound=Callable[..., Any])


def _doc(line: str) -> dict[str, str]:
    """Metadata of a field that is an argument: what a person reads of it in one line."""
    return {_DOC: line}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Keyword arguments that belong together: the base of the kinds of arguments below."""

    @classmethod
    def fields(cls) -> tuple[Field[Any], ...]:
        """The fields that are arguments, in the order of the wrappers' signatures."""
        return tuple(one for one in dataclasses.fields(cls) if _DOC in one.metadata)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The arguments' names, in the same order."""
        return tuple(one.name for one in cls.fields())

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Self:
        """Take the arguments of this kind out of a call's keyword arguments.

        Args:
            given: Keyword arguments by name; those that are taken are removed.

        Returns:
            The arguments; those that are not given have their default.
        """
        return cls(**{name: given.pop(name) for name in cls.names() if name in given})


@dataclass(frozen=True, kw_only=True)
class EngineArguments(Arguments):
    """What vLLM is started with.

    Attributes:
        other: Any further argument of `vllm.EngineArgs`, by name; and `lora_request`, the LoRA
            adapter that is applied to every text.
    """

    trust_remote_code: bool = field(
        default=True, metadata=_doc("Whether to run the model's own code.")
    )
    dtype: Dtype = field(default="auto", metadata=_doc("What the engine computes in."))
    head_dtype: HeadDtype | None = field(
        default=None, metadata=_doc("dtype of the head layers; the model's if none.")
    )
    max_model_len: int | None = field(
        default=None,
        metadata=_doc("Tokens after which a text is cut; the model's own limit if none."),
    )
    max_num_batched_tokens: int | None = field(
        default=None, metadata=_doc("Tokens in one step of the engine.")
    )
    max_num_seqs: int = field(default=128, metadata=_doc("Texts in one step of the engine."))
    renderer_num_workers: int = field(default=1, metadata=_doc("Threads for vLLM's preprocessing."))
    tensor_parallel_size: int = field(
        default=1, metadata=_doc("GPUs over which the model is split.")
    )
    enable_prefix_caching: bool | None = field(
        default=None, metadata=_doc("Whether vLLM shares its KV cache between equal beginnings.")
    )
    gpu_memory_utilization: float = field(
        default=MTEB_GPU_MEMORY_UTILIZATION,
        metadata=_doc(
            "Share of GPU memory to reserve, 0.9 by default; on CPU, of system memory, half of "
            "what is free by default."
        ),
    )
    hf_overrides: dict[str, Any] | None = field(
        default=None, metadata=_doc("Changes to the model's Hugging Face configuration.")
    )
    pooler_config: "PoolerConfig | dict[str, Any] | None" = field(
        default=None, metadata=_doc("vLLM's PoolerConfig, or its fields.")
    )
    enforce_eager: bool = field(
        default=False, metadata=_doc("Whether to do without compilation and CUDA graphs.")
    )
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def taken_from(cls, given: dict[str, Any], *, for_vllm: bool = False) -> Self:
        """Take all that is left of a call's keyword arguments: what has no field is `other`.

        Args:
            given: Keyword arguments by name, from which all other kinds have been taken; it is
                empty afterwards.
            for_vllm: Whether vLLM itself is to be started with them, not another engine.

        Returns:
            The arguments, with all that have no field here in `other`.

        Raises:
            ConfigError: A name is an argument of another wrapper of embcache, or like one of
                embcache's arguments, and so probably misspelt; or the installed vLLM does not know
                it, see `check_engine_arguments`.
        """
        own = {name: given.pop(name) for name in cls.names() if name in given}
        for name in given:
            _refuse_own(name)
        beside = given.keys() - {"lora_request"}
        check_engine_arguments(beside, own.get("pooler_config"), own=for_vllm)
        other = dict(given)
        given.clear()
        return cls(**own, other=other)

    def for_vllm(self) -> dict[str, Any]:
        """The arguments of `vllm.EngineArgs`, by name, `other` included and `dtype` left out.

        Returns:
            A new dict. `head_dtype` stands in a copy of `hf_overrides`, where mteb puts it too.
        """
        apart = ("dtype", "head_dtype")
        given = {name: getattr(self, name) for name in self.names() if name not in apart}
        if self.head_dtype is not None:
            given["hf_overrides"] = {**(self.hf_overrides or {}), "head_dtype": self.head_dtype}
        return {**given, **self.other}


@dataclass(frozen=True, kw_only=True)
class PromptArguments(Arguments):
    """What the encoder puts in front of texts."""

    prompt_dict: Mapping[str, str] | Literal["registered"] | None = field(
        default=None,
        metadata=_doc(
            'Prompts by task or prompt type; or "registered", those of mteb\'s registry.'
        ),
    )
    use_instructions: bool = field(
        default=False,
        metadata=_doc("Whether prompts are instructions for the template, not prefixes."),
    )
    instruction_template: "str | Callable[[str, PromptType | None], str] | None" = field(
        default=None, metadata=_doc("What becomes of an instruction: a text with {instruction}.")
    )
    apply_instruction_to_documents: bool = field(
        default=True, metadata=_doc("Whether documents get instructions too.")
    )


@dataclass(frozen=True, kw_only=True)
class PairArguments(Arguments):
    """What the cross-encoder makes of a pair, beside mteb's two prefixes."""

    query_suffix: str = field(default="", metadata=_doc("Put behind every query."))
    document_suffix: str = field(default="", metadata=_doc("Put behind every document."))
    chat_template: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_doc("Jinja template that makes one text of query and document, or its file."),
    )


@dataclass(frozen=True, kw_only=True)
class CacheArguments(Arguments):
    """Where results are kept, and what is done with them."""

    cache_path: str | os.PathLike[str] | None = field(
        default="cache", metadata=_doc("Directory or URL of the cache; None for no cache.")
    )
    storage_options: Mapping[str, str] | None = field(
        default=None,
        repr=False,  # secrets
        metadata=_doc("What a URL's store needs to be opened; the usual credentials if none."),
    )
    on_miss: Literal["encode", "raise"] = field(
        default="encode",
        metadata=_doc("What is not cached is encoded; raise: never start an engine, fail."),
    )
    read_only: bool = field(default=False, metadata=_doc("Use the cache, write nothing to it."))
    on_write_error: Literal["warn", "raise"] = field(
        default="warn",
        metadata=_doc("Where the cache cannot be written, go on without; raise: stop."),
    )
    store_text: bool = field(
        default=True, metadata=_doc("Whether a new space keeps texts beside its values.")
    )
    canaries: bool = field(
        default=True,
        metadata=_doc(
            "Whether to compare a few texts of embcache's own before anything is written."
        ),
    )
    compact_automatically: bool = field(
        default=True,
        metadata=_doc("Whether to compact the space in the background, when it pays."),
    )
    upstream: "Place | Sequence[Place] | None" = field(
        default=None,
        metadata=_doc(
            "Cache in which is looked for what this one has not, or several; EMBCACHE_UPSTREAM."
        ),
    )
    upstream_write: bool = field(
        default=False,
        metadata=_doc("Whether the first upstream gets what is encoded."),
    )


@dataclass(frozen=True, kw_only=True)
class VectorArguments(Arguments):
    """What of the cached vectors is returned."""

    truncate_dim: int | None = field(
        default=None,
        metadata=_doc("Return the first so many components of each vector (Matryoshka)."),
    )


def takes(*kinds: type[Arguments]) -> Callable[[F], F]:
    """Make the signature of a function with `**kwargs` show the arguments that it takes from them.

    Args:
        *kinds: Kinds of arguments. Their fields become keyword-only parameters, in this order, in
            front of the function's own keyword-only parameters.

    Returns:
        A decorator, which returns the same function.
    """
    added = [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type
        )
        for kind in kinds
        for one in kind.fields()
    ]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [*signature.parameters.values()]
        last = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        at = next(place for place, parameter in enumerate(own) if parameter.kind in last)
        shown = signature.replace(parameters=[*own[:at], *added, *own[at:]])
        function.__signature__ = shown  # type: ignore[attr-defined]  # inspect and help() read it
        return function

    return decorate


def _refuse_own(name: str) -> None:
    """Refuse an argument that has, or nearly has, the name of one of embcache's."""
    kinds = (PromptArguments, PairArguments, CacheArguments, VectorArguments)
    own = [*(each for kind in kinds for each in kind.names()), *_OTHER_NAMES]
    if name in own:
        raise ConfigError(f"{name} is no argument of this wrapper. Leave it out.")
    if near := difflib.get_close_matches(name, own, 1, _MISSPELT):
        raise ConfigError(
            f"{name} is an argument neither of embcache nor of vLLM's engine. Is {near[0]} meant?"
        )
