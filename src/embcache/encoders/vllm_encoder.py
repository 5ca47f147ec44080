"""A drop-in for mteb's vLLM encoder."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType

from embcache.encoders.arguments import (
    CacheArguments,
    EngineArguments,
    PromptArguments,
    VectorArguments,
    takes,
)
from embcache.encoders.experiment import prompt_settings
from embcache.encoders.inputs import read_texts
from embcache.encoders.registry import (
    model_config,
    registered_prompts,
    resolve_prompts,
    truncated_meta,
    warn_if_untrained,
)
from embcache.encoders.vllm_base import MakeEngine, VllmWrapperBase
from embcache.engine.vllm import VllmEngine
from embcache.errors import ConfigError
from embcache.pipeline.request import TextRequest
from embcache.pipeline.result import Truncation

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader


class VllmEncoderWrapper(VllmWrapperBase, AbsEncoder):
    """mteb's `VllmEncoderWrapper`, with a cache in front of the engine.

    Constructing it imports no vllm and loads no weights. The engine starts at the first text that
    is not cached; a run in which all texts are cached needs neither vllm nor a GPU.

    Args:
        model: Hub name, model directory, or mteb's ModelMeta, whose revision then counts.
        revision: Branch, tag or commit, resolved to a commit; None for `main`. Without meaning for
            a directory, which is identified by its files' content.
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
        gpu_memory_utilization: Share of GPU memory to reserve, 0.9 unless given. On CPU it is a
            share of system memory, and unless given, half of the memory that is free: with 0.9
            vLLM would not start there. Decoder models fill it with a KV cache, which
            `kv_cache_memory_bytes=2**30` makes small.
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
        cache_path: Directory or URL of the cache; None for no cache.
        storage_options: What the store of a URL needs to be opened (keys, region, endpoint), by
            name, as Lance's `storage_options`; None for the environment's and the machine's usual
            credentials. Upstreams get them, too. They are noted nowhere, and in no identity.
        on_miss: "encode" sends texts that are not cached to the engine; "raise" never starts an
            engine and raises MissingTextsError instead.
        read_only: Whether to use the cache and write nothing to it.
        on_write_error: What happens where the cache cannot be written (disk full, quota, a folder
            that is gone or made read-only): "warn" goes on without writing, says so once, and tries
            again in the next call; "raise" raises CacheWriteError. `warm` always raises it.
        store_text: Whether a new space keeps text and prompt beside each vector.
        canaries: Whether to encode a few texts of embcache's own whenever the engine has started,
            and to raise ChangedModelError where the space has other vectors for them: the engine is
            then not the one that filled it. They are compared before anything is written.
        compact_automatically: Whether to merge small files and remove old ones in the background,
            after commits, when it pays; readers and other writers are not disturbed.
        upstream: A cache, or several, in which is looked for what `cache_path` has not, before an
            engine is started: a team's. What is found is checked and kept in `cache_path`, unless
            `read_only`. None is what EMBCACHE_UPSTREAM names, several separated by commas; [] is
            none. One that is out of reach or damaged is warned of, and the run goes on without.
        upstream_write: Whether what is encoded is written to the first upstream too, if it may be.
        truncate_dim: Return only the first so many components of each vector (Matryoshka),
            normalised again where the model normalises; None for all. The cache holds the full
            vectors, so this costs no encoding and no second space.
        make_engine: Makes another engine than vLLM's, see `embcache.engine.Engine`: a server, or a
            stand-in in tests. Its vectors are cached as vLLM's, so it must compute what vLLM would.
        **kwargs: `lora_request`, a LoRA adapter that is applied to every text: its directory, hub
            name, or vLLM's LoRARequest. And any further argument of `vllm.EngineArgs`; those that
            embcache does not know count as changing the vectors.

    Attributes:
        mteb_model_meta: What mteb records about the model.
        model_prompts: Prompts by name, as `prompt_dict` was settled; None where none are applied.
        prompts_dict: The same as `model_prompts`; mteb looks in both.
        stats: Counts of the last `encode`, an `EncodeStats`.
        total: The sum of all `stats` of this object.

    Raises:
        ConfigError: An argument has a value that cannot work. It is a ValueError too, as in mteb.
        ModelNotFoundError: There is no such model here, on the hub, or in the local hub cache.
        CacheError: The cache path is a file or cannot be written.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """

    convert = "embed"
    model_prompts: dict[str, str] | None
    prompts_dict: dict[str, str] | None

    @takes(EngineArguments, PromptArguments, CacheArguments, VectorArguments)
    def __init__(
        self,
        model: str | os.PathLike[str] | ModelMeta,
        revision: str | None = None,
        *,
        make_engine: MakeEngine | None = None,
        **kwargs: Any,
    ) -> None:
        self._given = {"model": model, "make_engine": make_engine, **kwargs}
        prompts = PromptArguments.taken_from(kwargs)
        cache = CacheArguments.taken_from(kwargs)
        truncate_dim = VectorArguments.taken_from(kwargs).truncate_dim
        engine = EngineArguments.taken_from(kwargs, for_vllm=make_engine is None)
        _check_template(prompts.use_instructions, prompts.instruction_template)
        truncation = None if truncate_dim is None else Truncation(truncate_dim)
        make_engine = VllmEngine if make_engine is None else make_engine
        super().__init__(model, revision, engine, cache, make_engine, truncation)
        registered = registered_prompts(self._meta)
        # mteb looks static prompts up in the one and instructions in the other.
        self.model_prompts = self.prompts_dict = resolve_prompts(
            prompts.prompt_dict, registered, self._source.name
        )
        self.use_instructions = prompts.use_instructions
        self.instruction_template = prompts.instruction_template
        self.apply_instruction_to_passages = prompts.apply_instruction_to_documents
        if truncate_dim is not None and self._meta is not None:
            config = model_config(self._source) | (engine.hf_overrides or {})
            warn_if_untrained(truncate_dim, self._meta, config)
            self._meta = truncated_meta(self._meta, truncate_dim)

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
            task_metadata: Decides the prompt; the task's name is noted beside new rows.
            hf_split: Split of the task; changes nothing.
            hf_subset: Subset of the task; changes nothing.
            prompt_type: Query, document or None; decides the prompt.
            **kwargs: mteb's encode kwargs. `show_progress_bar=False` silences the progress bar;
                `batch_size` has no meaning here, the engine batches by tokens.

        Returns:
            `(n, dim) float32`, row i = i-th text of the inputs; `dim` is `truncate_dim`, if given.

        Raises:
            InputError: The inputs are no DataLoader with texts alone; or a text has no UTF-8 form,
                or is refused by the tokenizer.
            ConfigError: `precision` is among the encode kwargs, and not "float32"; dtype is "auto",
                vllm is not installed, and the cache holds several dtypes; or `truncate_dim` is
                larger than the model's vectors.
            MissingTextsError: Texts are not cached, and `on_miss="raise"`.
            CacheError: The cache cannot be read or written.
            EngineError: vLLM does not start, or fails.
            NonFiniteError: vLLM returned NaN or infinity.
        """
        began = time.perf_counter()
        prompt_type = None if prompt_type is None else PromptType(prompt_type)
        texts = read_texts(inputs)
        request = TextRequest(
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
        return self._run(request)

    def prompt_for(
        self, prompt_type: PromptType | str | None, task_metadata: TaskMetadata | None = None
    ) -> str:
        """What this encoder puts in front of a text.

        Args:
            prompt_type: Query, document or None.
            task_metadata: Metadata of the task; None for texts of no task, which get the prompt of
                their prompt type.

        Returns:
            The prompt, its last space included; "" for none.

        Raises:
            ConfigError: There is no task, and `use_instructions` makes the prompt of the task.
        """
        kind = None if prompt_type is None else PromptType(prompt_type)
        if task_metadata is not None:
            return self._prompt(task_metadata, kind)
        if self.prompts_dict and self.use_instructions:
            raise ConfigError(
                "use_instructions=True makes the prompt of the task, and these texts are of none. "
                "Give the prompt itself."
            )
        return (self.prompts_dict or {}).get("" if kind is None else kind.value, "")

    def recipe(self, **changed: Any) -> partial[VllmEncoderWrapper]:
        """How to make this encoder again, in another process or on another machine.

        Places are absolute and the revision is the commit that was found here, so that it does not
        depend on where it is made; prompts are those that were settled here.

        Args:
            **changed: Arguments of this class that are to have other values.

        Returns:
            A function without arguments, which pickles if the arguments do; its `keywords` are
            what was given. It holds `storage_options`, secrets included.
        """
        given: dict[str, Any] = {**self._given, "prompt_dict": self.prompts_dict}
        model = given["model"]
        if isinstance(model, (str, os.PathLike)):
            local = self._source.directory if self._source.is_local else None
            given["model"] = self._source.name if local is None else str(local)
            given["revision"] = None if local is not None else self._source.revision
        for name in ("tokenizer", "hf_config_path", "lora_request"):
            if isinstance(path := given.get(name), str) and os.path.exists(path):
                given[name] = os.path.abspath(path)
        if self._database is not None:
            given["cache_path"] = self._database.location.uri
        given["upstream"] = [one.location.uri for one in self._upstreams]
        return partial(type(self), **{**given, **changed})

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | prompt_settings(
            prompts=self.prompts_dict,
            use_instructions=self.use_instructions,
            template=self.instruction_template,
            documents=self.apply_instruction_to_passages,
            priority=self.prompt_priority,
        )

    def _prompt(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        prompt = ""
        if self.prompts_dict is not None:
            if not self.use_instructions:
                name = self.get_prompt_name(task_metadata, prompt_type)
                prompt = "" if name is None else self.prompts_dict[name]
            elif self.apply_instruction_to_passages or prompt_type != PromptType.document:
                prompt = self.get_task_instruction(task_metadata, prompt_type)
        return prompt


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
