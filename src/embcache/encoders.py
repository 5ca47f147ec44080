"""Drop-ins for mteb's vLLM wrappers."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from tqdm.auto import tqdm

from embcache.dtype import AutoDtype
from embcache.engine.base import Engine
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION, VllmEngine
from embcache.errors import ConfigError, DtypeMismatchError
from embcache.identity import Identity, normalize_dtype, vector_arguments
from embcache.inputs import read_texts
from embcache.memo import Memo
from embcache.model_meta import find_model_meta
from embcache.pipeline import OnMiss, Pipeline, Request
from embcache.prompts import registered_prompts, resolve_prompts
from embcache.source import pin_tokenizer, resolve_model
from embcache.stats import EncodeStats
from embcache.store import Database

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader
    from vllm.config import PoolerConfig

logger = logging.getLogger(__name__)

Dtype = Literal["half", "float16", "float", "float32", "bfloat16", "auto"]


class VllmEncoderWrapper(AbsEncoder):
    """mteb's `VllmEncoderWrapper`, with a cache in front of the engine.

    Constructing it imports no vllm and loads no weights. The engine starts at the first text that
    is not cached; a run in which all are needs neither vllm nor a GPU.

    Args:
        model: Hub name, model directory, or mteb's ModelMeta, whose revision then counts.
        revision: Branch, tag or commit; resolved to a commit. Without meaning for a directory,
            which is identified by its files' content.
        trust_remote_code: Whether to run the model's own code.
        dtype: What the engine computes in; vectors are kept as float32 whatever it is. "auto" is
            vLLM's choice on this machine (float32 weights become float16); without vllm it is
            the dtype that the cache holds.
        head_dtype: dtype of the head layers; None keeps the model's.
        max_model_len: Tokens after which a text is cut; None for the model's own limit.
        max_num_batched_tokens: Tokens in one step of the engine.
        max_num_seqs: Texts in one step of the engine.
        renderer_num_workers: Threads for vLLM's preprocessing.
        tensor_parallel_size: GPUs over which the model is split.
        enable_prefix_caching: Whether vLLM shares its KV cache between equal beginnings.
        gpu_memory_utilization: Share of GPU memory to reserve. On CPU it is a share of system
            memory, where mteb's 0.9 fails to start: there, unless it is given, half of the memory
            that is free.
        hf_overrides: Changes to the model's Hugging Face configuration.
        pooler_config: vLLM's PoolerConfig, or a dict of its fields.
        enforce_eager: Whether to do without compilation and CUDA graphs.
        prompt_dict: Prompts by `{task}-{prompt type}`, task, `{task type}-{prompt type}`, task
            type or prompt type, looked up in this order. "registered" takes those that mteb's
            registry holds for the model.
        use_instructions: Whether prompts are instructions to be put into `instruction_template`;
            otherwise they are prefixes. As in mteb, it takes effect with a `prompt_dict`; give {}
            to use the instructions that come with the tasks.
        instruction_template: A string with `{instruction}`, or a function of instruction and
            prompt type.
        apply_instruction_to_documents: Whether documents get instructions too.
        cache_path: Directory of the cache; None for no cache.
        on_miss: "encode", or "raise": never start an engine, raise MissingTextsError.
        read_only: Use the cache, write nothing to it.
        store_text: Whether a new space keeps text and prompt beside each vector.
        **kwargs: Further arguments of `vllm.EngineArgs`. Those that embcache does not know count
            as changing the vectors.

    Attributes:
        mteb_model_meta: What mteb records about the model.
        stats: Counts of the last `encode`, an `EncodeStats`.
        total: The sum of all `stats` of this object.

    Raises:
        ConfigError: An argument cannot work; also a ValueError, as in mteb.
        ModelNotFoundError: There is no such model here, on the hub, or in the local hub cache.
        CacheError: The cache path is a file or cannot be written.
    """

    model_prompts: dict[str, str] | None
    prompts_dict: dict[str, str] | None

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelMeta,
        revision: str | None = None,
        *,
        trust_remote_code: bool = True,
        dtype: Dtype = "auto",
        head_dtype: Literal["model"] | Dtype | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int = 128,
        renderer_num_workers: int = 1,
        tensor_parallel_size: int = 1,
        enable_prefix_caching: bool | None = None,
        gpu_memory_utilization: float = MTEB_GPU_MEMORY_UTILIZATION,
        hf_overrides: dict[str, Any] | None = None,
        pooler_config: PoolerConfig | dict[str, Any] | None = None,
        enforce_eager: bool = False,
        prompt_dict: Mapping[str, str] | Literal["registered"] | None = None,
        use_instructions: bool = False,
        instruction_template: str | Callable[[str, PromptType | None], str] | None = None,
        apply_instruction_to_documents: bool = True,
        cache_path: str | os.PathLike[str] | None = "cache",
        on_miss: OnMiss = "encode",
        read_only: bool = False,
        store_text: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_choice("on_miss", on_miss, ("encode", "raise"))
        _check_template(use_instructions, instruction_template)
        settled = normalize_dtype(dtype)
        arguments: dict[str, Any] = {
            "trust_remote_code": trust_remote_code,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "renderer_num_workers": renderer_num_workers,
            "tensor_parallel_size": tensor_parallel_size,
            "enable_prefix_caching": enable_prefix_caching,
            "gpu_memory_utilization": gpu_memory_utilization,
            "hf_overrides": _merge_head_dtype(hf_overrides, head_dtype),
            "pooler_config": pooler_config,
            "enforce_eager": enforce_eager,
            **kwargs,
        }
        changing = vector_arguments(arguments)
        self._write = not read_only and on_miss == "encode"
        self._database = None if cache_path is None else Database(cache_path, writable=self._write)
        memo = Memo()
        if isinstance(model, (str, os.PathLike)):
            name = model = os.fspath(model)
        else:
            name, revision = str(model.name), model.revision
        self._source = resolve_model(name, revision, memo)
        self.mteb_model_meta = find_model_meta(model, self._source)
        prompts = resolve_prompts(prompt_dict, registered_prompts(self.mteb_model_meta), name)
        # mteb looks static prompts up in the one and instructions in the other.
        self.model_prompts = self.prompts_dict = prompts
        self.use_instructions = use_instructions
        self.instruction_template = instruction_template
        self.apply_instruction_to_passages = apply_instruction_to_documents
        self.stats = EncodeStats()
        self.total = EncodeStats()
        self._on_miss: OnMiss = on_miss
        self._store_text = store_text
        self._identity = Identity(
            self._source.identity_name,
            self._source.revision,
            settled,
            pin_tokenizer(changing, memo),
        )
        self._requested = self._identity
        self._auto = AutoDtype(self._identity, self._source, arguments, memo)
        self._engine: Engine = VllmEngine(*self._source.load_from, {**arguments, "dtype": settled})
        self._pipeline: Pipeline | None = None
        # At exit, or when nobody holds this object any more; atexit alone would hold it forever.
        weakref.finalize(self, self._engine.close)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Vectors of the inputs' texts, from the cache where it has them.

        Args:
            inputs: DataLoader whose batches have a `text` list.
            task_metadata: Decides the prompt; its name is noted beside new rows.
            hf_split: Split of the task; changes nothing.
            hf_subset: Subset of the task; changes nothing.
            prompt_type: query, document or None; decides the prompt.
            **kwargs: mteb's encode kwargs. `show_progress_bar=False` silences the progress bar;
                `batch_size` has no meaning here, the engine batches by tokens.

        Returns:
            `(n, dim) float32`, row i = i-th text of the inputs.

        Raises:
            InputError: There is no text in the inputs, or one cannot be encoded.
            MissingTextsError: `on_miss="raise"`, and texts are not cached.
            CacheError: The cache cannot be read or written.
            EngineError: vLLM does not start or fails; NonFiniteError where it returns NaN.
        """
        began = time.perf_counter()
        prompt_type = None if prompt_type is None else PromptType(prompt_type)
        texts = read_texts(inputs)
        request = Request(
            texts=texts,
            prompt=self._prompt(task_metadata, prompt_type),
            prompt_type=None if prompt_type is None else prompt_type.value,
            task=task_metadata.name,
            show_progress=bool(kwargs.get("show_progress_bar", True)),
            began=began,
        )
        precision = kwargs.get("precision")
        if precision not in (None, "float32"):
            raise ConfigError(
                f"precision={precision!r} is an option of Sentence Transformers; vLLM returns "
                "float vectors. Leave it out."
            )
        if self._pipeline is None:
            self._pipeline = self._make_pipeline(request.show_progress)
        vectors, self.stats = self._pipeline.encode(request)
        self.total += self.stats
        return vectors

    def cleanup(self) -> None:
        """Free the engine, if it was started. Encoding goes on to work; it starts a new one."""
        self._engine.close()

    @property
    def identity(self) -> Identity:
        """What all vectors of this encoder have in common; dtype may still be "auto"."""
        return self._identity

    def _prompt(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        prompt = ""
        if self.prompts_dict is not None:
            if not self.use_instructions:
                name = self.get_prompt_name(task_metadata, prompt_type)
                prompt = "" if name is None else self.prompts_dict[name]
            elif self.apply_instruction_to_passages or prompt_type != PromptType.document:
                prompt = self.get_task_instruction(task_metadata, prompt_type)
        return prompt

    def _make_pipeline(self, show_progress: bool) -> Pipeline:
        """Settle the identity; this happens at the first `encode`, because "auto" may take 10 s."""
        if self._identity.dtype == "auto" and self._database is not None:
            cached = self._database.cached_dtypes(self._identity)
            dtype = self._settle_dtype(cached, show_progress)
            if cached and dtype not in cached:
                logger.warning(
                    "dtype='auto' means %s here, and the cache holds this model in %s: nothing of "
                    "it is used. Name that dtype to use it.",
                    dtype,
                    ", ".join(cached),
                )
            self._identity = self._identity.with_dtype(dtype)
        space = None
        if self._database is not None:
            space = self._database.space(
                self._identity,
                self._source.name,
                self._engine.version,
                store_text=self._store_text,
            )
        return Pipeline(
            self._engine,
            self._identity,
            space,
            on_miss=self._on_miss,
            write=self._write,
            check_engine=self._check_engine,
        )

    def _settle_dtype(self, cached: list[str], show_progress: bool) -> str:
        if self._on_miss == "raise" and not cached:
            return "auto"  # everything is missing, whatever it means
        dtype = self._auto.settle(cached)
        if dtype is None:
            # Everything is a miss, so the engine is needed anyway, and knows.
            with tqdm(
                desc="starting engine",
                bar_format="{desc}",
                leave=False,
                disable=not show_progress,
            ):
                self._engine.start()
            dtype = self._engine.dtype
            self._auto.remember(dtype)
        return dtype

    def _check_engine(self) -> None:
        expected, actual = self._identity.dtype, self._engine.dtype
        if expected in ("auto", actual):
            return
        # What was remembered of "auto" is no longer so; the next encode knows better.
        self._auto.remember(actual)
        self._pipeline, self._identity = None, self._requested
        raise DtypeMismatchError(
            f"The engine runs in {actual}, and dtype={self._requested.dtype!r} was taken for "
            f"{expected}: nothing was written to that space. Run again, or name the dtype."
        )


def _merge_head_dtype(
    hf_overrides: dict[str, Any] | None, head_dtype: str | None
) -> dict[str, Any] | None:
    """As mteb does it, but in a copy of the caller's dict."""
    if head_dtype is None:
        return hf_overrides
    return {**(hf_overrides or {}), "head_dtype": head_dtype}


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown. Use one of {', '.join(choices)}.")


def _check_template(use_instructions: bool, template: object) -> None:
    if use_instructions and template is None:
        raise ConfigError(
            "To use instructions, an instruction_template must be provided (use_instructions=True "
            "was given without one): 'Instruct: {instruction}\\nQuery: ', say."
        )
    if isinstance(template, str) and "{instruction}" not in template:
        raise ConfigError(
            "Instruction template must contain the string '{instruction}'; instruction_template="
            f"{template!r} does not."
        )
