"""Contenders of the parts `cold` and `start`: a real engine, and nothing cached.

Each is told batches of texts that are new to it; the n-th call encodes the n-th batch. The vectors
are left in files, for the process that measures to compare them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _inputs import Vectors, as_loader, check_equal, fresh_texts, model_path, saved_vectors, task
from _setup import WARM_UP, Batch, Contender, Setup, nothing, once

MAX_NUM_SEQS = 128
# Of the GPU's memory, or of system memory on CPU: a small model needs little, and the engines wait
# for their turns beside each other.
MEMORY_SHARE = 0.2
WARM_UP_TEXTS = 48
# By kind of device, how many texts Sentence Transformers tries batch sizes with, and which.
TRIALS = {"cpu": (48, (8, 16, 32)), "cuda": (1024, (32, 128, 512))}


def embcache(setup: Setup) -> Contender:
    """`VllmEncoderWrapper` with an empty cache, which it fills."""
    from embcache import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        _model(setup),
        dtype=setup.dtype,
        max_num_seqs=MAX_NUM_SEQS,
        gpu_memory_utilization=MEMORY_SHARE,
        cache_path=setup.folder / f"cold-{os.getpid()}",
    )
    arguments = task()

    def encode(texts: list[str]) -> Vectors:
        return encoder.encode(as_loader(texts), **arguments, show_progress_bar=False)

    def check(vectors: Any, number: int) -> None:
        texts = _texts(setup, number)
        assert (encoder.stats.hits, encoder.stats.encoded) == (0, len(texts)), encoder.stats
        again = encode(texts)  # all from the cache now
        assert (encoder.stats.hits, encoder.stats.encoded) == (len(texts), 0), encoder.stats
        check_equal(again, vectors)
        _leave(setup, "embcache", vectors, number)

    contender = Contender(lambda number: partial(encode, _texts(setup, number)), check)
    return _warmed_up(setup, contender)


def mteb(setup: Setup) -> Contender:
    """The wrapper of mteb itself, with its defaults."""
    from mteb.models.vllm_wrapper import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        _model(setup), dtype=setup.dtype, gpu_memory_utilization=MEMORY_SHARE
    )
    arguments = task()
    return _warmed_up(
        setup, _saving(setup, "mteb", lambda texts: encoder.encode(as_loader(texts), **arguments))
    )


def vllm(setup: Setup) -> Contender:
    """The engine by itself, with embcache's settings."""
    llm = _plain_llm(setup)
    return _warmed_up(setup, _saving(setup, "vllm", lambda texts: _plain_encode(llm, texts)))


def transformers(setup: Setup) -> Contender:
    """Sentence Transformers with its own sorting, on all cores, and its best batch size."""
    return _sentence_transformers(setup, "transformers")


def transformers_flash(setup: Setup) -> Contender:
    """The same with flash attention, for GPUs."""
    return _sentence_transformers(setup, "transformers_flash", "flash_attention_2")


def _sentence_transformers(setup: Setup, name: str, attention: str = "sdpa") -> Contender:
    model = _load_transformers(setup, attention)
    sizes = {batch: _best_size(model, setup, batch) for batch in set(setup.batches)}

    def prepare(number: int) -> Callable[[], Any]:
        size = sizes[setup.batches[number]]
        texts = _texts(setup, number)
        return lambda: model.encode(texts, batch_size=size, show_progress_bar=False)

    return Contender(prepare, lambda vectors, number: _leave(setup, name, vectors, number))


def _best_size(model: Any, setup: Setup, batch: Batch) -> int:
    """The batch size with which Sentence Transformers is fastest with texts of such lengths."""
    count, sizes = TRIALS[model.device.type]
    texts = fresh_texts(Batch(count, batch.least, batch.most), setup.turn, WARM_UP)
    model.encode(texts[:8], show_progress_bar=False)
    seconds = {}
    for size in sizes:
        began = time.perf_counter()
        model.encode(texts, batch_size=size, show_progress_bar=False)
        seconds[size] = time.perf_counter() - began
    return min(sizes, key=lambda size: seconds[size])


# ---- start: from the start of a process to the first vectors ------------------------------------


def start_embcache(setup: Setup) -> Contender:
    """`VllmEncoderWrapper` that has to start its engine, with embcache's own settings."""
    from embcache import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        _model(setup),
        dtype=setup.dtype,
        gpu_memory_utilization=MEMORY_SHARE,
        cache_path=setup.folder / f"start-{os.getpid()}",
    )
    arguments = task()
    return _saving(
        setup,
        "start_embcache",
        lambda texts: encoder.encode(as_loader(texts), **arguments, show_progress_bar=False),
    )


def start_vllm(setup: Setup) -> Contender:
    """The engine by itself."""
    llm = _plain_llm(setup)
    return _saving(setup, "start_vllm", lambda texts: _plain_encode(llm, texts))


def start_transformers(setup: Setup) -> Contender:
    """Sentence Transformers: the model is loaded, and encodes once."""
    model = _load_transformers(setup, "sdpa")
    return _saving(
        setup, "start_transformers", lambda texts: model.encode(texts, show_progress_bar=False)
    )


def start_hits(setup: Setup) -> Contender:
    """`VllmEncoderWrapper`, where all texts are cached."""
    from embcache import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        model_path(), dtype="float32", cache_path=setup.folder / "embcache", on_miss="raise"
    )
    arguments = task()
    loader = as_loader(fresh_texts(setup.batches[0], 0, 0))
    return once(
        lambda: encoder.encode(loader, **arguments, show_progress_bar=False),
        lambda found: check_equal(found, saved_vectors(setup)),
    )


def import_mteb(setup: Setup) -> Contender:
    """Only the import, which whoever uses mteb pays."""
    import mteb  # noqa: F401

    return once(lambda: None, nothing)


def import_mteb_and_torch(setup: Setup) -> Contender:
    """The imports alone of whoever calls an encoder as mteb does: with a DataLoader."""
    import mteb  # noqa: F401
    from torch.utils.data import DataLoader  # noqa: F401

    return once(lambda: None, nothing)


def import_vllm(setup: Setup) -> Contender:
    """Only the import, which whoever starts vLLM pays."""
    from vllm import LLM  # noqa: F401

    return once(lambda: None, nothing)


# ---- what they share -----------------------------------------------------------------------------


def _model(setup: Setup) -> str:
    return setup.model or model_path()


def _texts(setup: Setup, number: int) -> list[str]:
    if number <= WARM_UP:
        batch = setup.batches[WARM_UP - number]
        return fresh_texts(Batch(WARM_UP_TEXTS, batch.least, batch.most), setup.turn, number)
    return fresh_texts(setup.batches[number], setup.turn, number)


def _warmed_up(setup: Setup, contender: Contender) -> Contender:
    """Encode once of each length before anything is timed: that compiles, imports and creates."""
    for number in range(len(setup.batches)):
        contender.prepare(WARM_UP - number)()
    return contender


def _saving(setup: Setup, name: str, encode: Callable[[list[str]], Any]) -> Contender:
    return Contender(
        lambda number: partial(encode, _texts(setup, number)),
        lambda vectors, number: _leave(setup, name, vectors, number),
    )


def _leave(setup: Setup, name: str, vectors: Any, number: int) -> None:
    matrix = vectors.float().cpu().numpy() if hasattr(vectors, "cpu") else vectors
    np.save(setup.folder / f"{name}-{number}.npy", np.asarray(matrix, np.float32))


def _load_transformers(setup: Setup, attention: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    kwargs = {"dtype": getattr(torch, setup.dtype), "attn_implementation": attention}
    return SentenceTransformer(_model(setup), model_kwargs=kwargs)


def _plain_llm(setup: Setup) -> Any:
    """Start vLLM by itself, with the environment and the settings that embcache gives it."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    from vllm import LLM
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return LLM(
        model=_model(setup),
        runner="pooling",
        convert="embed",
        dtype=setup.dtype,
        max_num_seqs=MAX_NUM_SEQS,
        trust_remote_code=True,
        gpu_memory_utilization=MEMORY_SHARE,
    )


def _plain_encode(llm: Any, batch: list[str]) -> Any:
    import torch

    outputs = llm.encode(
        batch,
        pooling_task="embed",
        tokenization_kwargs={"truncate_prompt_tokens": -1},
        use_tqdm=False,
    )
    return torch.stack([output.outputs.data for output in outputs])
