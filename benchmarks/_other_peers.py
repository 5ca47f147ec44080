"""Contenders of the parts `evaluate`, `partly` and `tool`: embcache, and what it is due."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from _cold_peers import MAX_NUM_SEQS, MEMORY_SHARE
from _fill import fill_embcache
from _inputs import (
    DTYPE,
    Vectors,
    as_loader,
    check_equal,
    fresh_texts,
    make_vectors,
    model_path,
    raw_texts,
    stored_texts,
    task,
)
from _setup import WARM_UP, Batch, Contender, Setup, nothing, once

# ---- evaluate: mteb.evaluate of a retrieval task ------------------------------------------------

QUERIES = 50  # with more, mteb ranks for longer than it waits for vectors


def evaluate_embcache(setup: Setup) -> Contender:
    """mteb.evaluate with `VllmEncoderWrapper` over the full cache."""
    from embcache import VllmEncoderWrapper

    encoder = VllmEncoderWrapper(
        model_path(), dtype=DTYPE, cache_path=setup.folder / "embcache", on_miss="raise"
    )
    return _evaluate(setup, encoder)


def evaluate_memory(setup: Setup) -> Contender:
    """mteb.evaluate with an encoder that hands out the matrix, which it has in memory."""
    return _evaluate(setup, _from_memory(np.load(setup.folder / "texts.npy")))


def _from_memory(documents: Vectors) -> Any:
    from mteb.models.abs_encoder import AbsEncoder

    from embcache import VllmEncoderWrapper

    matrices: dict[str, Vectors] = {"document": documents, "query": documents[:QUERIES]}

    class FromMemory(AbsEncoder):
        # The same metadata, so that mteb does the same work.
        mteb_model_meta = VllmEncoderWrapper(model_path(), cache_path=None).mteb_model_meta

        def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Vectors:
            matrix = matrices[prompt_type.value]
            assert len(inputs.dataset) == len(matrix), "mteb asks for documents in several parts"
            return matrix

    return FromMemory()


def _evaluate(setup: Setup, encoder: Any) -> Contender:
    """A call of mteb.evaluate. What mteb imports at the first one is imported before."""
    import mteb
    from datasets import Dataset, disable_caching

    # Else whoever comes first leaves the documents, as mteb prepares them, to all who follow.
    disable_caching()

    def evaluate(made_up: Any, model: Any) -> Any:
        return mteb.evaluate(model, made_up, cache=None, show_progress_bar=False).task_results

    def check(result: Any) -> None:
        """Each text finds itself, by its own vector."""
        score = result[0].scores["test"][0]["main_score"]
        if score != 1:
            raise SystemExit(
                f"WRONG VECTORS: nDCG@10 is {score}, and every text is its own answer."
            )

    few = Dataset.from_dict({"text": [f"text {row}" for row in range(QUERIES)]})
    evaluate(_made_up_task(few), _from_memory(make_vectors(QUERIES)))
    texts = Dataset.load_from_disk(str(setup.folder / "texts"))
    return once(partial(evaluate, _made_up_task(texts), encoder), check)


def _made_up_task(texts: Any) -> Any:
    """A retrieval task whose documents are some texts, and whose queries are the first of them."""
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    ids = [f"d{row}" for row in range(len(texts))]
    corpus = texts.add_column("id", ids)

    class MadeUp(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="MadeUpRetrieval",
            description="Made-up texts, each the answer to itself.",
            dataset={"path": "benchmark/made-up", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": corpus,
                        "queries": corpus.select(range(QUERIES)),
                        "relevant_docs": {name: {name: 1} for name in ids[:QUERIES]},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return MadeUp()


# ---- partly: some of the texts are cached -------------------------------------------------------

PARTLY_CALLS = ("partly", "hits", "misses")
"""What the n-th call of a batch does; each batch stands in a row three times."""


def partly(setup: Setup) -> Contender:
    """An engine that is started and warmed up, and for each call a cache of its own.

    For each batch: its texts and the cached ones beside them, shuffled; the cached ones alone; its
    texts alone, with an empty cache.
    """
    from embcache import VllmEncoderWrapper

    encoders: list[Any] = []  # all alive to the end: one that goes closes the engine
    arguments = task()

    def new(cache: Path) -> Any:
        given: dict[str, Any] = {"max_num_seqs": MAX_NUM_SEQS, "cache_path": cache}
        if encoders:
            given["make_engine"] = lambda *_: encoders[0]._engine
        given |= {"dtype": DTYPE, "gpu_memory_utilization": MEMORY_SHARE}
        encoders.append(VllmEncoderWrapper(model_path(), **given))
        return encoders[-1]

    def prepare(number: int) -> Callable[[], Any]:
        batch, kind = setup.batches[number], PARTLY_CALLS[number % len(PARTLY_CALLS)]
        misses = fresh_texts(batch, setup.turn, number // len(PARTLY_CALLS))
        hits = stored_texts(batch.cached)
        cache = setup.folder / f"partly-{setup.turn}-{number}"
        if kind != "misses":
            shutil.copytree(setup.folder / f"partly-{batch.cached}", cache)
        texts = {"partly": _shuffled(misses, hits), "hits": hits, "misses": misses}[kind]
        loader, encoder = as_loader(texts), new(cache)
        return partial(encoder.encode, loader, **arguments, show_progress_bar=False)

    def check(vectors: Any, number: int) -> None:
        batch, kind = setup.batches[number], PARTLY_CALLS[number % len(PARTLY_CALLS)]
        hits = 0 if kind == "misses" else batch.cached
        misses = 0 if kind == "hits" else batch.texts
        stats = encoders[-1].stats
        assert (stats.hits, stats.encoded) == (hits, misses), stats
        if kind == "hits":
            check_equal(vectors, make_vectors(batch.cached))

    first = new(setup.folder / f"partly-{setup.turn}-first")
    warm_up = as_loader(fresh_texts(Batch(64, 8, 20), setup.turn, WARM_UP))
    first.encode(warm_up, **arguments, show_progress_bar=False)
    return Contender(prepare, check)


def fill_partly(setup: Setup) -> Contender:
    """Leave a full cache for each number of cached texts."""

    def fill() -> None:
        sizes = sorted({batch.cached for batch in setup.batches})
        for size in sizes:
            path = setup.folder / f"partly-{size}"
            fill_embcache(path, stored_texts(size), make_vectors(size))

    return once(fill, nothing)


def _shuffled(misses: list[str], hits: list[str]) -> list[str]:
    order = np.random.default_rng(0).permutation(len(misses) + len(hits))
    both = misses + hits
    return [both[row] for row in order]


# ---- tool: a fully warm corpus through `warm` ---------------------------------------------------


def fill_tool(setup: Setup) -> Contender:
    """Leave the texts in an Arrow file, and a cache that has them all."""

    def fill() -> None:
        texts = stored_texts(setup.texts)
        table = pa.table({"text": texts})
        with pa.ipc.new_file(setup.folder / "texts.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=10_000)
        fill_embcache(setup.folder / "embcache", texts, make_vectors(setup.texts, setup.dim))

    return once(fill, nothing)


def tool_embcache(setup: Setup) -> Contender:
    """`Warmer` over the file: it reads, hashes and looks up."""
    from embcache import VllmEncoderWrapper
    from embcache.warm import Columns, Warmer
    from embcache.warm.parts import parts

    encoder = VllmEncoderWrapper(model_path(), dtype=DTYPE, cache_path=setup.folder / "embcache")

    def run() -> Any:
        found = parts("arrow", [setup.folder / "texts.arrow"], Columns())
        return Warmer(encoder).run(batch for part in found for batch in part.read(print))

    def check(stats: Any) -> None:
        assert (stats.hits, stats.encoded) == (setup.texts, 0), stats

    return once(run, check)


def tool_floor(setup: Setup) -> Contender:
    """Map the file and hash every text with xxh3_128, on one core: no warm can leave that out."""

    def run() -> int:
        with pa.memory_map(str(setup.folder / "texts.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
            return len(list(map(xxhash.xxh3_128_digest, raw_texts(table))))

    def check(count: int) -> None:
        assert count == setup.texts, count

    return once(run, check)
