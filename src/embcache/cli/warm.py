"""`warm`: fill a cache over tasks, files and data sets, before anything is evaluated."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.filesize import decimal

from embcache.cli.options import (
    DEFAULT_CACHE,
    BenchmarkOption,
    CacheDirectory,
    ModelOption,
    Names,
    RevisionOption,
    StorageOptions,
    TaskOption,
    encoder_options,
    prompt_option,
    store_options,
)
from embcache.cli.output import (
    EmbcacheCommand,
    human_count,
    print_json,
    print_note,
    print_text,
    prompt_counts,
    run,
)
from embcache.cli.progress import WarmDisplay
from embcache.cli.sources import Sources, role, typed_delimiter
from embcache.cluster import ClusterStats, ClusterWarmer
from embcache.encoders.arguments import EngineArguments, PromptArguments
from embcache.errors import ConfigError
from embcache.tools.describe import ValueCount
from embcache.warm import Columns, Dialect, Plan, Shard, Warmer, WarmStats, plan, select
from embcache.warm.malloc import limit_arenas
from embcache.warm.sources import FORMATS

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

_INTERRUPTED = 130
_SHOWN_REPLICAS = 16
_EXAMPLE = "Example: {} -m intfloat/e5-small --prompt-dict registered --task NFCorpus"


class Part(StrEnum):
    """Of retrieval tasks."""

    corpus = "corpus"
    queries = "queries"


@encoder_options(
    *(*EngineArguments.names(), *PromptArguments.names()),
    *("store_text", "canaries", "compact_automatically", "upstream", "upstream_write"),
)
def warm(
    model: ModelOption,
    encoder: dict[str, Any],
    revision: RevisionOption = None,
    cache: CacheDirectory = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    task: TaskOption = None,
    benchmark: BenchmarkOption = None,
    part: Annotated[
        list[Part] | None,
        typer.Option(help="Of retrieval tasks and BEIR folders; both if none."),
    ] = None,
    eval_split: Annotated[Names, typer.Option(help="Only these splits of the tasks.")] = None,
    subset: Annotated[Names, typer.Option(help="Only these subsets of the tasks.")] = None,
    parquet: Annotated[
        Names, typer.Option(help="Files, globs, directories, or URLs of these.")
    ] = None,
    arrow: Annotated[Names, typer.Option(help="The same, Arrow IPC.")] = None,
    jsonl: Annotated[
        Names, typer.Option(help="The same, JSON lines or arrays; - is standard input.")
    ] = None,
    csv: Annotated[Names, typer.Option(help="The same, CSV.")] = None,
    tsv: Annotated[
        Names, typer.Option(help="The same, TSV; quotes are characters like others.")
    ] = None,
    txt: Annotated[Names, typer.Option(help="The same, plain text: one text a line.")] = None,
    lance: Annotated[
        Names, typer.Option(help="Lance tables, globs, or directories of them; spaces, too.")
    ] = None,
    beir: Annotated[Names, typer.Option(help="Folder with corpus.jsonl and queries.jsonl.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hugging Face data set, streamed.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of --dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of --dataset.")] = "train",
    text_column: Annotated[
        str,
        typer.Option(
            help="Column of the texts: a name, a path (doc.text), a number without header."
        ),
    ] = "text",
    title_column: Annotated[
        str | None, typer.Option(help="Column of titles, joined as mteb joins them.")
    ] = None,
    instruction_column: Annotated[
        str | None, typer.Option(help="Column of queries' instructions, joined as mteb joins them.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Of CSV and TSV; found out if not given.", parser=typed_delimiter),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            help="Whether CSV and TSV begin with names; without, columns are numbers, from 1.",
            show_default=False,
        ),
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            help="Whether quotes enclose fields: in CSV they do, in TSV not, if not given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        prompt_option("The prompt in front of every text of files and data sets."),
    ] = None,
    prompt_type: Annotated[
        Literal["query", "document", "none"] | None,
        typer.Option(
            help="What files and data sets hold: decides their prompt of --prompt-dict, and that "
            "blanks around documents are left off, as mteb does. Not given: documents, without a "
            "prompt. none: texts of classification, clustering or STS."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many texts of each file, task or data set.")
    ] = None,
    shard: Annotated[str, typer.Option(help="3/8: every 8th text, from the 3rd on.")] = "1/1",
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where texts are encoded: by one engine here, or by several of Ray's."),
    ] = "local",
    replicas: Annotated[
        str | None,
        typer.Option(help="Of --engine ray: how many engines; auto, all GPUs. [default: auto]"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of --engine ray: host:port of a cluster; auto, the one that runs here. Not "
            "given: RAY_ADDRESS, or this machine alone."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only count; starts no engine.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Stop at the first row that would be left out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Summary as JSON at the end.")] = False,
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
            "tsv": tsv or [],
            "txt": txt or [],
            "lance": lance or [],
        },
        beir=beir or [],
        dataset=dataset,
        config=config,
        dataset_split=split,
        columns=Columns(
            text_column, title_column, instruction=instruction_column, role=role(prompt_type)
        ),
        dialect=Dialect(delimiter, header, quotes),
        parts=tuple(each.value for each in part or Part),
        splits=eval_split or [],
        subsets=subset or [],
        prompt=prompt,
        prompt_type=prompt_type,
        strict=strict,
    )
    if sources.empty:
        kinds = ", ".join(f"--{kind}" for kind in FORMATS)
        raise typer.BadParameter(
            f"Name some texts: --task, --benchmark, {kinds}, --beir, --dataset."
        )
    count = _replicas(engine, replicas, address)
    limit_arenas()  # the next import brings threads
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper  # and mteb, which takes seconds

    pick = _shard(shard)
    wrapper = VllmEncoderWrapper(
        model,
        revision,
        cache_path=cache,
        storage_options=store_options(storage_options),
        read_only=dry_run,
        on_write_error="raise",
        **encoder,
    )
    if note := sources.prompt_note(wrapper):
        print_note(note)
    if dry_run:
        warmer = Warmer(wrapper, report=sources.report)
        found = plan(warmer, wrapper, select(sources.batches(wrapper, warmer.stop), pick, limit))
        sources.check_read(found.texts)
        _print_plan(found, sources.bad_rows, as_json=as_json)
        return
    total = sources.estimate(limit, pick.of)
    with WarmDisplay(total, lambda: sources.bad_rows) as display:
        if count is None:
            stats = _warm_here(wrapper, sources, display, pick, limit)
        else:
            on_ray = ClusterWarmer(wrapper, count, address, display.update, sources.report)
            stats = _warm_there(on_ray, wrapper, sources, total, pick, limit)
    if not stats.stopped:
        sources.check_read(stats.texts)
    _print_summary(stats, sources.bad_rows, cache, as_json=as_json)
    if stats.stopped:
        raise typer.Exit(_INTERRUPTED)


def _warm_here(
    encoder: VllmEncoderWrapper,
    sources: Sources,
    display: WarmDisplay,
    pick: Shard,
    limit: int | None,
) -> WarmStats:
    warmer = Warmer(encoder, display.update, sources.report)
    with _stopped_by_signals(warmer.stop.set):
        return warmer.run(select(sources.batches(encoder, warmer.stop), pick, limit))


def _warm_there(
    warmer: ClusterWarmer,
    encoder: VllmEncoderWrapper,
    sources: Sources,
    total: int | None,
    pick: Shard,
    limit: int | None,
) -> ClusterStats:
    parts = sources.batches_of_others(pick, limit)
    here = sources.batches_of_here(encoder, warmer.stop)
    with _stopped_by_signals(warmer.stop.set):
        return warmer.run(parts, None if here is None else select(here, pick, limit), total)


def _replicas(
    engine: str, replicas: str | None, address: str | None
) -> int | Literal["auto"] | None:
    """How many replicas are wanted; None without a cluster."""
    if engine == "local":
        for name, value in (("--replicas", replicas), ("--address", address)):
            if value is not None:
                raise typer.BadParameter(f"{name} {value} is for --engine ray, which is not given.")
        return None
    if replicas in (None, "auto"):
        return "auto"
    if not replicas.isdecimal() or int(replicas) < 1:
        raise typer.BadParameter(f"--replicas {replicas!r}: give a number, 1 or more, or auto.")
    return int(replicas)


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
        "unknown before the first vector" if found.disk_bytes is None else decimal(found.disk_bytes)
    )
    for name, value in (
        ("texts", human_count(found.texts)),
        ("unique", human_count(found.unique)),
        ("cached", human_count(found.cached)),
        ("missing", human_count(found.missing)),
        ("tokens", f"about {human_count(found.tokens)} ({found.tokens_from})"),
        ("disk", disk if found.disk_bytes is None else f"about {disk}"),
        ("bad rows", human_count(bad_rows)),
        ("prompts", prompt_counts(map(ValueCount, found.prompts, found.prompts.values())) or "-"),
    ):
        print_text(f"{name:<9}{value}")


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
    who = "Ray's and vLLM's" if isinstance(stats, ClusterStats) else "vLLM's"
    start = f", {stats.start_seconds:.1f} s of it {who} start" if stats.start_seconds else ""
    found = f" ({human_count(stats.upstream)} of them upstream)" if stats.upstream else ""
    print_text(
        f"{human_count(stats.texts)} texts: {human_count(stats.hits)} were cached{found}, "
        f"{human_count(stats.encoded)} encoded; {human_count(bad_rows)} rows left out; "
        f"{stats.seconds:.1f} s{start}; {human_count(round(rate))} texts/s"
    )
    if isinstance(stats, ClusterStats):
        for one in stats.replicas[:_SHOWN_REPLICAS]:
            again = f", started {one.starts} times" if one.starts > 1 else ""
            print_text(
                f"  {one.host}, process {one.pid}: {human_count(one.encoded)} encoded in "
                f"{human_count(one.blocks)} blocks{again}"
            )
        if len(stats.replicas) > _SHOWN_REPLICAS:
            print_text(f"  and {len(stats.replicas) - _SHOWN_REPLICAS} replicas more (--json)")
    if stats.stopped:
        print_text(
            f"Stopped. The {human_count(stats.committed)} that were encoded are in {cache}; the "
            "same command goes on from here."
        )


def main() -> None:
    """`scripts/warm_cache.py`: this command by itself."""
    alone = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    alone.command(cls=EmbcacheCommand, epilog=_EXAMPLE.format("python scripts/warm_cache.py"))(warm)
    run(alone)
