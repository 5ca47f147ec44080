"""`eval`: run mteb tasks through the cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from embcache.cli.engine_options import mteb_tasks, parse_prompts
from embcache.cli.output import console, human_count, print_json
from embcache.pipeline.pipeline import OnMiss

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper as Encoder

Names = list[str] | None


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


def evaluate(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub name or directory.")],
    task: Annotated[
        Names,
        typer.Option("--task", "-t", help="mteb task, or module:Class; again for more."),
    ] = None,
    benchmark: Annotated[Names, typer.Option(help="All tasks of an mteb benchmark.")] = None,
    cache: Annotated[str, typer.Option(help="Directory of the cache.")] = "cache",
    prompts: Annotated[
        str | None, typer.Option(help='The encoder\'s prompt_dict: "registered", or JSON.')
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model.")] = None,
    dtype: Annotated[str, typer.Option(help="What the engine computes in.")] = "auto",
    truncate_dim: Annotated[int | None, typer.Option(help="Matryoshka.")] = None,
    cached_only: Annotated[
        bool, typer.Option("--cached-only", help="Never start an engine: fail on a miss.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a model on mteb tasks through the cache: scores, hits and seconds."""
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper  # and mteb, which takes seconds

    tasks = mteb_tasks(task or [], benchmark or [])
    if not tasks:
        raise typer.BadParameter("Name a task: --task STS13, or a --benchmark.")
    on_miss: OnMiss = "raise" if cached_only else "encode"
    encoder = VllmEncoderWrapper(
        model,
        revision,
        dtype=dtype,
        cache_path=cache,
        prompt_dict=parse_prompts(prompts),
        truncate_dim=truncate_dim,
        on_miss=on_miss,
    )
    runs = [_run(encoder, each, progress=not as_json) for each in tasks]
    encoder.cleanup()
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
