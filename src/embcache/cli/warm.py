"""`warm`: fill a cache over tasks, files and data sets, before anything is evaluated."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from types import FrameType
from typing import Annotated, Any

import typer

from embcache.cli.engine_options import parse_json, parse_prompts
from embcache.cli.output import (
    human_count,
    human_size,
    print_error,
    print_json,
    print_note,
    prompt_counts,
)
from embcache.cli.progress import WarmDisplay
from embcache.cli.warm_sources import Sources
from embcache.errors import ConfigError, EmbcacheError
from embcache.tools.describe import ValueCount
from embcache.warm import Columns, Plan, Shard, Warmer, WarmStats, plan, select
from embcache.warm.malloc import limit_arenas
from embcache.warm.sources import FORMATS

_INTERRUPTED = 130
_EXAMPLE = "Example: {} -m intfloat/e5-small --prompts registered --task NFCorpus"

List = list[str] | None
_MODEL = "Model and engine"


class Part(StrEnum):
    """Of retrieval tasks."""

    corpus = "corpus"
    queries = "queries"


class TextKind(StrEnum):
    """Prompt types of mteb."""

    query = "query"
    document = "document"


def warm(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Hub name or directory.", rich_help_panel=_MODEL)
    ],
    cache: Annotated[str, typer.Option(help="Directory of the cache.")] = "cache",
    task: Annotated[List, typer.Option(help="mteb task, or module:Class; again for more.")] = None,
    benchmark: Annotated[List, typer.Option(help="All tasks of an mteb benchmark.")] = None,
    part: Annotated[
        list[Part] | None, typer.Option(help="Of retrieval tasks and BEIR folders; both if none.")
    ] = None,
    eval_split: Annotated[List, typer.Option(help="Only these splits of the tasks.")] = None,
    subset: Annotated[List, typer.Option(help="Only these subsets of the tasks.")] = None,
    parquet: Annotated[List, typer.Option(help="Files, globs or directories.")] = None,
    arrow: Annotated[List, typer.Option(help="The same, Arrow IPC.")] = None,
    jsonl: Annotated[List, typer.Option(help="The same, JSON lines; - is standard input.")] = None,
    csv: Annotated[List, typer.Option(help="The same, CSV with a header.")] = None,
    beir: Annotated[List, typer.Option(help="Folder with corpus.jsonl and queries.jsonl.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hugging Face data set, streamed.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of --dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of --dataset.")] = "train",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    title_column: Annotated[
        str | None, typer.Option(help="Column of titles, joined as mteb joins them.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Put in front of every text of files and data sets.")
    ] = None,
    prompt_type: Annotated[
        TextKind | None, typer.Option(help="Which of --prompts files get.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help='The encoder\'s prompt_dict: "registered", or JSON.')
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many texts of each file, task or data set.")
    ] = None,
    shard: Annotated[str, typer.Option(help="3/8: every 8th text, from the 3rd on.")] = "1/1",
    dry_run: Annotated[bool, typer.Option(help="Only count; starts no engine.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first row without a text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Summary as JSON at the end.")] = False,
    revision: Annotated[str | None, typer.Option(rich_help_panel=_MODEL)] = None,
    dtype: Annotated[str, typer.Option(rich_help_panel=_MODEL)] = "auto",
    head_dtype: Annotated[str | None, typer.Option(rich_help_panel=_MODEL)] = None,
    trust_remote_code: Annotated[bool, typer.Option(rich_help_panel=_MODEL)] = True,
    max_model_len: Annotated[int | None, typer.Option(rich_help_panel=_MODEL)] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(rich_help_panel=_MODEL)] = None,
    max_num_seqs: Annotated[int, typer.Option(rich_help_panel=_MODEL)] = 128,
    renderer_num_workers: Annotated[int, typer.Option(rich_help_panel=_MODEL)] = 1,
    tensor_parallel_size: Annotated[int, typer.Option(rich_help_panel=_MODEL)] = 1,
    enable_prefix_caching: Annotated[bool | None, typer.Option(rich_help_panel=_MODEL)] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(rich_help_panel=_MODEL)] = None,
    hf_overrides: Annotated[str | None, typer.Option(help="JSON.", rich_help_panel=_MODEL)] = None,
    pooler_config: Annotated[str | None, typer.Option(help="JSON.", rich_help_panel=_MODEL)] = None,
    enforce_eager: Annotated[bool, typer.Option(rich_help_panel=_MODEL)] = False,
    use_instructions: Annotated[bool, typer.Option(rich_help_panel=_MODEL)] = False,
    instruction_template: Annotated[str | None, typer.Option(rich_help_panel=_MODEL)] = None,
    apply_instruction_to_documents: Annotated[bool, typer.Option(rich_help_panel=_MODEL)] = True,
    store_text: Annotated[bool, typer.Option(help="Keep texts beside the vectors.")] = True,
    engine_arg: Annotated[
        List,
        typer.Option(
            metavar="NAME=JSON",
            help="Any other engine argument: quantization='\"fp8\"'.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
) -> None:
    """Encode and commit the texts of tasks, files and data sets that are not cached yet.

    Ctrl-C ends after the chunk in flight; the same command goes on from there.
    """
    sources = Sources(
        tasks=task or [],
        benchmarks=benchmark or [],
        files={
            "parquet": parquet or [],
            "arrow": arrow or [],
            "jsonl": jsonl or [],
            "csv": csv or [],
        },
        beir=beir or [],
        dataset=dataset,
        config=config,
        dataset_split=split,
        columns=Columns(text_column, title_column),
        parts=tuple(each.value for each in part or Part),
        splits=eval_split or [],
        subsets=subset or [],
        prompt=prompt,
        prompt_type=None if prompt_type is None else prompt_type.value,
        strict=strict,
    )
    if sources.empty:
        kinds = ", ".join(f"--{kind}" for kind in FORMATS)
        raise typer.BadParameter(
            f"Name some texts: --task, --benchmark, {kinds}, --beir, --dataset."
        )
    given: dict[str, Any] = {
        "revision": revision,
        "dtype": dtype,
        "head_dtype": head_dtype,
        "trust_remote_code": trust_remote_code,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_num_seqs": max_num_seqs,
        "renderer_num_workers": renderer_num_workers,
        "tensor_parallel_size": tensor_parallel_size,
        "enable_prefix_caching": enable_prefix_caching,
        "hf_overrides": parse_json("--hf-overrides", hf_overrides),
        "pooler_config": parse_json("--pooler-config", pooler_config),
        "enforce_eager": enforce_eager,
        "use_instructions": use_instructions,
        "instruction_template": instruction_template,
        "apply_instruction_to_documents": apply_instruction_to_documents,
        "store_text": store_text,
        "prompt_dict": parse_prompts(prompts),
        **_engine_arguments(engine_arg or []),
    }
    if gpu_memory_utilization is not None:  # else a default that works on this machine
        given["gpu_memory_utilization"] = gpu_memory_utilization
    limit_arenas()  # the next import brings threads
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper  # and mteb, which takes seconds

    pick = _shard(shard)
    encoder = VllmEncoderWrapper(model, cache_path=cache, read_only=dry_run, **given)
    if note := sources.prompt_note(encoder):
        print_note(note)
    if dry_run:
        warmer = Warmer(encoder)
        found = plan(warmer, encoder, select(sources.batches(encoder, warmer), pick, limit))
        sources.check_read(found.texts)
        _print_plan(found, sources.bad_rows, as_json=as_json)
        return
    total = sources.estimate(limit, pick.of)
    with WarmDisplay(total, lambda: sources.bad_rows) as display:
        warmer = Warmer(encoder, display.update)
        with _stopped_by_signals(warmer.stop.set):
            stats = warmer.run(select(sources.batches(encoder, warmer), pick, limit))
    if not stats.stopped:
        sources.check_read(stats.texts)
    _print_summary(stats, sources.bad_rows, cache, as_json=as_json)
    if stats.stopped:
        raise typer.Exit(_INTERRUPTED)


def register(app: typer.Typer) -> None:
    """Add `warm`."""
    app.command(epilog=_EXAMPLE.format("embcache warm"))(warm)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask to stop; a second one does what it does elsewhere."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        print_note("stopping after the chunk in flight; once more to stop at once")
        stop()
        for each, handler in kept.items():
            signal.signal(each, handler)

    for number in kept:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _print_plan(found: Plan, bad_rows: int, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(found), "bad_rows": bad_rows})
        return
    disk = (
        "unknown before the first vector"
        if found.disk_bytes is None
        else human_size(found.disk_bytes)
    )
    for name, value in (
        ("texts", human_count(found.texts)),
        ("unique", human_count(found.unique)),
        ("cached", human_count(found.cached)),
        ("missing", human_count(found.missing)),
        ("tokens", f"about {human_count(found.tokens)}"),
        ("disk", disk if found.disk_bytes is None else f"about {disk}"),
        ("bad rows", human_count(bad_rows)),
        ("prompts", prompt_counts(map(ValueCount, found.prompts, found.prompts.values())) or "-"),
    ):
        typer.echo(f"{name:<9}{value}")


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def _print_summary(stats: WarmStats, bad_rows: int, cache: str, *, as_json: bool) -> None:
    if as_json:
        fields = {**asdict(stats), "bad_rows": bad_rows}
        del fields["starting"]
        print_json(fields)
        return
    rate = stats.texts / stats.working_seconds if stats.working_seconds else 0.0
    start = f", {stats.start_seconds:.1f} s of it vLLM's start" if stats.start_seconds else ""
    typer.echo(
        f"{human_count(stats.texts)} texts: {human_count(stats.hits)} were cached, "
        f"{human_count(stats.encoded)} encoded; {human_count(bad_rows)} rows left out; "
        f"{stats.seconds:.1f} s{start}; {human_count(round(rate))} texts/s"
    )
    if stats.stopped:
        typer.echo(
            f"Stopped. The {human_count(stats.committed)} that were encoded are in {cache}; the "
            "same command goes on from here."
        )


def _engine_arguments(pairs: list[str]) -> dict[str, Any]:
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--engine-arg {pair}: give NAME=JSON, seed=1, say.")
        arguments[name] = parse_json(f"--engine-arg {name}", value)
    return arguments


def main() -> None:
    """`scripts/warm_cache.py`: this command by itself."""
    alone = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    alone.command(epilog=_EXAMPLE.format("python scripts/warm_cache.py"))(warm)
    try:
        alone()
    except EmbcacheError as error:
        print_error(error)
        raise SystemExit(1) from error
