"""`eval`: run mteb tasks through the cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from embcache.cli.options import (
    DEFAULT_CACHE,
    BenchmarkOption,
    CacheDirectory,
    JsonOption,
    ModelOption,
    RevisionOption,
    StorageOptions,
    TaskOption,
    encoder_options,
    store_options,
)
from embcache.cli.output import console, human_count, print_json
from embcache.cli.sources import mteb_tasks
from embcache.encoders.arguments import EngineArguments, PromptArguments

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper as Encoder


@dataclass(frozen=True)
class TaskRun:
    """One task's result.

    Attributes:
        task: Its name.
        score: Its main score; None where it failed.
        metric: Name of that score.
        texts: Texts that were asked for.
        hits: Distinct ones that were cached.
        encoded: Distinct ones sent to the engine.
        seconds: Wall-clock seconds, mteb's own work included.
    """

    task: str
    score: float
    metric: str
    texts: int
    hits: int
    encoded: int
    seconds: float


@encoder_options(
    *EngineArguments.names(),
    *PromptArguments.names(),
    *("on_miss", "read_only", "on_write_error", "store_text", "canaries"),
    *("compact_automatically", "upstream", "upstream_write", "truncate_dim"),
)
def evaluate(
    model: ModelOption,
    encoder: dict[str, Any],
    revision: RevisionOption = None,
    task: TaskOption = None,
    benchmark: BenchmarkOption = None,
    cache: CacheDirectory = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on mteb tasks through the cache: scores, hits and seconds.

    With the same options of the model, its engine and its prompts, it hits what `warm` cached.
    """
    if not (task or benchmark):
        raise typer.BadParameter("Name a task: --task STS13, or a --benchmark.")
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper  # and mteb, which takes seconds

    tasks = mteb_tasks(task or [], benchmark or [])
    wrapper = VllmEncoderWrapper(
        model, revision, cache_path=cache, storage_options=store_options(storage_options), **encoder
    )
    runs = [_run(wrapper, each, progress=not as_json) for each in tasks]
    wrapper.cleanup()
    if as_json:
        print_json(runs)
    else:
        console().print(_table(runs))


def register(app: typer.Typer) -> None:
    """Add `eval`."""
    app.command("eval", epilog="Example: embcache eval -m intfloat/e5-small -t STS12 -t STS13")(
        evaluate
    )


def _run(encoder: Encoder, task: Any, *, progress: bool) -> TaskRun:
    import mteb

    before, began = encoder.total, time.perf_counter()
    # cache=None: mteb's own cache of results would answer a second run without this one.
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=progress)
    seconds = time.perf_counter() - began
    after = encoder.total
    return TaskRun(
        task.metadata.name,
        float(result.task_results[0].get_score()),
        str(task.metadata.main_score),
        after.texts - before.texts,
        after.hits - before.hits,
        after.encoded - before.encoded,
        seconds,
    )


def _table(runs: list[TaskRun]) -> Table:
    table = Table("task", "metric", "score", "texts", "hits", "encoded", "seconds")
    for column in table.columns[2:]:
        column.justify = "right"
    for run in runs:
        counts = (human_count(count) for count in (run.texts, run.hits, run.encoded))
        table.add_row(run.task, run.metric, f"{run.score:.5f}", *counts, f"{run.seconds:.1f}")
    return table
