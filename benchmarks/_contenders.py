"""One contender in a process of its own: `python _contenders.py NAME FOLDER TEXTS`.

It gets ready, says so on standard output, and for each line on standard input it encodes once and
answers with the seconds that took. Wrong vectors end it with an error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _inputs
import numpy as np
from _inputs import DTYPE, Vectors, as_loader, make_texts, model_path, saved_loader, task

ANSWER = "embcache-bench:"
MAX_NUM_SEQS = 128
# Of the GPU's memory, or of system memory on CPU: a small model needs little, and three engines
# wait for their turns beside each other.
MEMORY_SHARE = 0.2
WARM_UP = -1  # the number of a call that is not timed
WARM_UP_TEXTS = 64


@dataclass(frozen=True)
class Contender:
    """Something that encodes, and is ready to.

    Attributes:
        prepare: Is given n, from 0, and returns the n-th call to be timed, which returns
            `(texts, dim)` vectors. What `prepare` does itself is not timed.
        check: Is given what the n-th call returned, and n; raises if the vectors are wrong.
    """

    prepare: Callable[[int], Callable[[], Any]]
    check: Callable[[Vectors, int], None]


def main() -> None:
    """Get the contender ready that the command line names, and encode once for each line."""
    name, folder, texts = sys.argv[1:]
    contender = CONTENDERS[name](Path(folder), int(texts))
    _answer(0.0)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        encode = contender.prepare(number)
        began = time.perf_counter()
        vectors = encode()
        seconds = time.perf_counter() - began
        contender.check(np.asarray(vectors), number)
        _answer(seconds)


def _answer(seconds: float) -> None:
    print(f"\n{ANSWER} {seconds}", flush=True)  # on a line of its own, whatever was left open


# Each function below makes the contender of its name in CONTENDERS. Its arguments are the folder
# of caches and vectors, and the number of texts in one encode.

# ---- warm: the first encode() of a process, everything cached ----------------------------------


def warm_embcache(folder: Path, texts: int) -> Contender:
    """`VllmEncoderWrapper` over the filled cache; it may not start an engine."""
    from embcache import VllmEncoderWrapper

    loader, arguments = saved_loader(folder), task()
    encoder = VllmEncoderWrapper(
        model_path(), dtype=DTYPE, cache_path=folder / "embcache", on_miss="raise"
    )
    return _warm(folder, lambda: encoder.encode(loader, **arguments, show_progress_bar=False))


def warm_mteb(folder: Path, texts: int) -> Contender:
    """CachedEmbeddingWrapper, mteb's, over the filled cache; its model fails if it is called."""
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper

    class MustNotBeCalled:
        mteb_model_meta = None

        def encode(self, inputs: Any, **kwargs: Any) -> Vectors:
            raise RuntimeError("CachedEmbeddingWrapper asked the model for cached texts")

    loader, arguments = saved_loader(folder), task()
    model: Any = MustNotBeCalled()
    cached = CachedEmbeddingWrapper(model, folder / "mteb")
    return _warm(folder, lambda: cached.encode(loader, **arguments, show_progress_bar=False))


def warm_floor(folder: Path, texts: int) -> Contender:
    """Reading the vectors' file with NumPy: what no cache can beat."""
    return _warm(folder, lambda: np.load(folder / "vectors.npy"))


def _warm(folder: Path, encode: Callable[[], Any]) -> Contender:
    def check(vectors: Vectors, number: int) -> None:
        assert number == 0, "only the first encode of a process is of interest"
        _check_equal(vectors, np.load(folder / "vectors.npy"))

    return Contender(lambda number: encode, check)


# ---- cold: nothing cached, an engine that is started and warmed up -----------------------------


def cold_embcache(folder: Path, texts: int) -> Contender:
    """`VllmEncoderWrapper` with an empty cache, which it fills."""
    from embcache import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        model_path(),
        dtype=DTYPE,
        max_num_seqs=MAX_NUM_SEQS,
        gpu_memory_utilization=MEMORY_SHARE,
        cache_path=folder / f"cold-{os.getpid()}",
    )

    def encode(batch: list[str]) -> Callable[[], Vectors]:
        loader = as_loader(batch)
        return lambda: encoder.encode(loader, **arguments, show_progress_bar=False)

    def check(vectors: Vectors, number: int) -> None:
        assert (encoder.stats.hits, encoder.stats.encoded) == (0, texts), encoder.stats
        again = encode(_cold_texts(texts, number))()  # all from the cache now
        assert (encoder.stats.hits, encoder.stats.encoded) == (texts, 0), encoder.stats
        _check_equal(again, vectors)
        np.save(folder / "embcache.npy", vectors)

    arguments = task()
    return _warmed_up(Contender(lambda number: encode(_cold_texts(texts, number)), check))


def cold_mteb(folder: Path, texts: int) -> Contender:
    """The wrapper of mteb itself, with its defaults."""
    from mteb.models.vllm_wrapper import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(model_path(), dtype=DTYPE, gpu_memory_utilization=MEMORY_SHARE)
    arguments = task()

    def prepare(number: int) -> Callable[[], Any]:
        loader = as_loader(_cold_texts(texts, number))
        return lambda: encoder.encode(loader, **arguments)

    return _warmed_up(_saving(prepare, folder / "mteb.npy"))


def cold_vllm(folder: Path, texts: int) -> Contender:
    """The engine by itself, started and warmed up."""
    return _warmed_up(start_vllm(folder, texts))


def start_vllm(folder: Path, texts: int) -> Contender:
    """The engine by itself, started and not warmed up."""
    llm = _plain_llm()

    def prepare(number: int) -> Callable[[], Any]:
        batch = _cold_texts(texts, number)
        return lambda: _plain_encode(llm, batch)

    return _saving(prepare, folder / "vllm.npy")


def _cold_texts(count: int, number: int) -> list[str]:
    """Texts of mixed lengths; those of each call begin with a word of its own: none comes twice."""
    first = _inputs.words()[number]
    count = min(count, WARM_UP_TEXTS) if number == WARM_UP else count
    return [f"{first} {text}" for text in make_texts(count, _inputs.COLD_TOKENS)]


def _warmed_up(contender: Contender) -> Contender:
    """Encode once before anything is timed: the first encode compiles, imports and creates."""
    contender.prepare(WARM_UP)()
    return contender


def _saving(prepare: Callable[[int], Callable[[], Any]], path: Path) -> Contender:
    return Contender(prepare, lambda vectors, number: np.save(path, vectors))


def _plain_llm() -> Any:
    """Start vLLM by itself, with the environment and the settings that embcache gives it."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    from vllm import LLM
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return LLM(
        model=model_path(),
        runner="pooling",
        convert="embed",
        dtype=DTYPE,
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


# ---- what comes before ---------------------------------------------------------------------------


def fill_warm(folder: Path, texts: int) -> Contender:
    """Fill the folder for the warm contenders; what is returned is not asked to encode."""
    _inputs.fill(folder, make_texts(texts, _inputs.WARM_TOKENS), for_mteb=True)
    return warm_floor(folder, texts)


def fill_start(folder: Path, texts: int) -> Contender:
    """Fill the folder for the start contenders; what is returned is not asked to encode."""
    _inputs.fill(folder, make_texts(texts, _inputs.COLD_TOKENS), for_mteb=False)
    return warm_floor(folder, texts)


def _check_equal(found: Vectors, expected: Vectors) -> None:
    if not np.array_equal(found, expected):
        raise SystemExit("WRONG VECTORS: what came back is not what the cache was filled with.")


CONTENDERS: dict[str, Callable[[Path, int], Contender]] = {
    "fill-warm": fill_warm,
    "fill-start": fill_start,
    "warm-embcache": warm_embcache,
    "warm-mteb": warm_mteb,
    "warm-floor": warm_floor,
    "cold-embcache": cold_embcache,
    "cold-mteb": cold_mteb,
    "cold-vllm": cold_vllm,
    "start-embcache": warm_embcache,
    "start-vllm": start_vllm,
}

if __name__ == "__main__":
    main()
