"""Commands that look into a cache: ls, show, get, compare and search."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.filesize import decimal
from rich.table import Table

from embcache.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    JsonOption,
    SpaceArgument,
    StorageOptions,
    encoder_options,
    location_of,
    prompt_option,
    typed_text,
)
from embcache.cli.output import (
    console,
    human_count,
    human_time,
    one_line,
    print_error,
    print_json,
    print_note,
    print_report,
    print_text,
    prompt_counts,
)
from embcache.errors import CacheError, ConfigError, MissingTextsError, quoted
from embcache.identity.identity import short_name
from embcache.identity.keys import Keys
from embcache.store import Database, Space
from embcache.tools.compare import compare_spaces
from embcache.tools.describe import SpaceDescription, ValueCount, describe
from embcache.tools.find import find_space, hint_of
from embcache.tools.search import find_or_embed, find_text, nearest, search_words

_BAR = 40
_NARROW = 100  # columns that a whole row of `ls` takes
_VALUES_SHOWN = 20
_COMPONENTS_SHOWN = 8


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("ls", epilog="Example: embcache ls /data/cache")(list_spaces)
    app.command("show", epilog="Example: embcache show e5-small --cache /data/cache")(show)
    app.command("get", epilog='Example: embcache get e5-small "a text" --prompt "query: "')(get)
    app.command("compare", epilog="Example: embcache compare float32 bfloat16")(compare)
    app.command("search", epilog='Example: embcache search e5-small "capital" --fts -k 5')(search)


def list_spaces(
    cache: Annotated[
        str, typer.Argument(metavar="[CACHE]", help="Directory or URL of the cache.")
    ] = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """List the spaces of a cache."""
    where = location_of(cache, storage_options)
    spaces, errors = Database(where, writable=False).readable_spaces()
    described = []
    for one in spaces:
        try:
            described.append(describe(one))
        except CacheError as broken:  # the others can still be listed
            errors.append(broken)
    if as_json:
        print_json([description_json(space) for space in described])
    elif described:
        out = console()
        out.print(_spaces_table(described, narrow=out.width < _NARROW))
    elif not errors:
        print_text(f"There are no spaces in {where}.{hint_of(where)}")
    for place in where.left_aside():
        print_note(f"Set aside as damaged, and used by nothing: {place}")
    for error in errors:
        print_error(error)
    if errors:
        raise typer.Exit(1)


def show(
    space: SpaceArgument,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a space is, and what it holds."""
    found = describe(find_space(space, location_of(cache, storage_options)))
    if as_json:
        print_json(description_json(found))
        return
    out = console()
    out.print(_facts(found))
    _print_tokens(found)
    for name, counts in found.counts.items():
        _print_counts(name, counts, found.uncounted[name])


def get(
    space: SpaceArgument,
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="A cached text; for scores, query and document.",
            parser=typed_text,
        ),
    ],
    prompt: Annotated[str | None, prompt_option("The prompt in front of the text.")] = None,
    query_prefix: Annotated[
        str | None, prompt_option("The prompt in front of a pair's query.", "--query-prefix")
    ] = None,
    document_prefix: Annotated[
        str | None, prompt_option("The prompt in front of its document.", "--document-prefix")
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Print the vector of a cached text, or the score of a pair."""
    chosen = find_space(space, location_of(cache, storage_options))
    is_pair = len(text) > 1
    if is_pair and prompt is not None:
        raise ConfigError(
            "--prompt is of one text. Of a query and a document, give --query-prefix and "
            "--document-prefix."
        )
    if not is_pair and (query_prefix, document_prefix) != (None, None):
        raise ConfigError(
            "--query-prefix and --document-prefix are of a pair. Give a query and a document; of "
            "one text, give --prompt."
        )
    found = find_text(
        chosen, text, (query_prefix or "", document_prefix or "") if is_pair else (prompt or "",)
    )
    names = ("query", "document") if is_pair else ("text",)
    prompts = ("query_prefix", "document_prefix") if is_pair else ("prompt",)
    norm = float(np.linalg.norm(found.value.astype(np.float64)))
    if as_json:
        value = {"score": found.value[0]} if is_pair else {"norm": norm, "vector": found.value}
        texts = dict(zip(names + prompts, found.texts + found.prompts, strict=True))
        print_json({"space": chosen.location, **texts, "n_tokens": found.n_tokens, **value})
        return
    facts = dict(zip(names, map(one_line, found.texts), strict=True))
    facts |= dict(zip(prompts, map(quoted, found.prompts), strict=True))
    facts["n_tokens"] = "unknown" if found.n_tokens is None else str(found.n_tokens)
    if is_pair:
        facts["score"] = f"{found.value[0]:.6g}"
    else:
        facts |= {"norm": f"{norm:.6f}", "vector": _components(found.value)}
    for name, fact in facts.items():
        print_text(f"{name:<16}{fact}")


def _components(vector: npt.NDArray[np.float32]) -> str:
    """The first components of a vector, and how many there are."""
    first = ", ".join(f"{component:.6g}" for component in vector[:_COMPONENTS_SHOWN])
    more = ", ..." if len(vector) > _COMPONENTS_SHOWN else ""
    return f"[{first}{more}] ({len(vector)} components; all with --json)"


def compare(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A space, named as in all commands.", show_default=False),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the vectors of the texts that two spaces share."""
    where = location_of(cache, storage_options)
    first, second = find_space(a, where), find_space(b, where)
    print_report(compare_spaces(first, second), as_json=as_json)


@encoder_options(
    *("on_miss", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager"),
    defaults={"enforce_eager": True},
    helps={
        "on_miss": "A text that is not cached is embedded; raise: never start an engine, fail.",
        "lora_request": "Where the space's LoRA adapter is now: directory or hub name.",
        "engine_arg": "Any other argument that changes no vector: block_size=32.",
    },
)
def search(
    space: SpaceArgument,
    words: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="A text; with --fts, any words.", parser=typed_text),
    ],
    encoder: dict[str, Any],
    fts: Annotated[
        bool, typer.Option("--fts", help="Search for words in the texts, as they are spelt.")
    ] = False,
    count: Annotated[int, typer.Option("-k", min=1, help="How many texts to print.")] = 10,
    prompt: Annotated[
        str | None,
        prompt_option("The prompt in front of TEXT; with --fts, of the texts to search."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Where the model is now, if not where the space notes it."
        ),
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Search for the cached texts that are nearest to a text, or that have some words.

    A text that is not cached is embedded first, by vLLM, as the space's own were: revision, dtype,
    max_model_len and whatever else decides vectors are the space's. Nothing is written.
    """
    chosen = find_space(space, location_of(cache, storage_options))
    if fts:
        matches, score = search_words(chosen, words, count, prompt), "bm25"
    else:
        vector, own = _embedded(chosen, words, prompt, model, encoder)
        matches, score = nearest(chosen, vector, count, own), "cosine"
    if as_json:
        print_json([{"text": m.text, "prompt": m.prompt, score: m.score} for m in matches])
        return
    for match in matches:
        shown = "(text not stored)" if match.text is None else one_line(match.text, 96)
        print_text(f"{match.score:9.6f}  {shown}")
    if not matches:
        print_note(f"No text of {chosen.location} {'has these words' if fts else 'is near it'}.")


def description_json(found: SpaceDescription) -> dict[str, Any]:
    """A description as `--json` prints it."""
    fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    metadata = fields.pop("metadata")
    return {
        "name": found.location.name,
        "fingerprint": metadata.identity.fingerprint(),
        **dataclasses.asdict(metadata),
        **fields,
    }


def _embedded(
    space: Space, text: str, prompt: str | None, model: str | None, engine: dict[str, Any]
) -> tuple[npt.NDArray[np.float32], Keys | None]:
    """The vector of a text, and its key if it is cached.

    Args:
        space: The space.
        text: The text.
        prompt: Before it; None if none was named.
        model: Where the model is now.
        engine: What to start the engine with, and `on_miss`.

    Raises:
        MissingTextsError: It is cached with another prompt, and none was named; or it is not
            cached, and nothing may be embedded.
    """
    may_embed = engine.pop("on_miss") == "encode"
    try:
        found = find_or_embed(space, text, prompt, may_embed=may_embed)
    except MissingTextsError as error:
        embed = "" if may_embed else " Without --on-miss raise it is embedded first."
        message = f"{error}{embed} To search for words in the texts, add --fts."
        raise MissingTextsError(message, error.missing) from error
    if found is not None:
        return found.value, found.key
    from embcache.encoders.space_encoder import embed_as  # and mteb, which takes seconds

    print_note(_not_cached(space, prompt))
    return embed_as(space, text, prompt or "", model, **engine), None


def _not_cached(space: Space, prompt: str | None) -> str:
    """What is said before the engine starts; names the space's prompts where none was given."""
    note = f"not cached: starting vLLM to embed it with prompt {quoted(prompt or '')}"
    counts = describe(space).counts.get("prompt", []) if prompt is None else []
    if not any(one.value for one in counts):
        return note
    return f"{note}\ntexts of this space have {prompt_counts(counts)}: name one with --prompt"


def _spaces_table(spaces: Sequence[SpaceDescription], *, narrow: bool) -> Table:
    """A row a space; on a narrow terminal without what tells least."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("space", no_wrap=True)
    table.add_column("model", overflow="fold", min_width=12)
    if not narrow:
        table.add_column("revision", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("prompts", overflow="fold", max_width=11 if narrow else 24)
    for name in ("dim", "rows", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last written", no_wrap=True)
    for space in spaces:
        metadata = space.metadata
        revision = [] if narrow else [metadata.identity.revision[:8]]
        written = human_time(space.last_written)
        table.add_row(
            metadata.identity.fingerprint(),
            short_name(metadata.model),
            *revision,
            metadata.identity.dtype,
            _prompts(space),
            "score" if space.value == "score" else str(space.dim),
            human_count(space.rows),
            decimal(space.size_bytes),
            written.split()[0] if narrow else written,
        )
    return table


def _prompts(space: SpaceDescription) -> str:
    """The distinct prompts, shortened."""
    columns = [name for name in space.counts if name not in ("prompt_type", "task")]
    if not columns:
        return "(not stored)"
    values = dict.fromkeys(c.value for name in columns for c in space.counts[name])
    shown = ", ".join("(unknown)" if v is None else quoted(v, 16) for v in [*values][:3])
    return shown + (f" +{len(values) - 3:,}" if len(values) > 3 else "")


def _facts(found: SpaceDescription) -> Table:
    metadata = found.metadata
    identity = metadata.identity
    facts: dict[str, object] = {
        "location": found.location,
        "model": short_name(metadata.model),
        **(
            {}
            if len(metadata.model) == len(short_name(metadata.model))
            else {"model path": metadata.model}
        ),
        "holds": "scores" if found.value == "score" else f"vectors of {found.dim} components",
        "rows": f"{human_count(found.rows)}, in {human_count(found.fragments)} fragments",
        "size": decimal(found.size_bytes),
        "written": f"{human_time(found.first_written)} to {human_time(found.last_written)}",
        "written by": f"embcache {metadata.embcache_version}, {metadata.engine_version}",
        "format version": found.format_version,
        "identity": identity.fingerprint(),
        **{f"  {f.name}": getattr(identity, f.name) for f in dataclasses.fields(identity)},
        "columns": "\n".join(f"{name}: {kind}" for name, kind in found.columns.items()),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, str(fact))
    return table


def _print_tokens(found: SpaceDescription) -> None:
    print("\ntokens")
    most = max((part.count for part in found.tokens), default=1)
    for part in found.tokens:
        bar = "\N{FULL BLOCK}" * round(_BAR * part.count / most)
        bar = bar or "\N{LEFT ONE EIGHTH BLOCK}" * bool(part.count)  # few are not none
        span = f"{human_count(part.first)} to {human_count(part.last)}"
        print_text(f"  {span:>18} {human_count(part.count):>12}  {bar}".rstrip())
    if found.tokens_unknown:
        print_text(
            f"  not recorded (n_tokens is null) for {human_count(found.tokens_unknown)} rows"
        )


def _print_counts(name: str, counts: Sequence[ValueCount], uncounted: int) -> None:
    print_text(f"\n{name}")
    for one in counts[:_VALUES_SHOWN]:
        shown = "(null)" if one.value is None else quoted(one.value)
        print_text(f"  {human_count(one.count):>12}  {shown}")
    rest = sum(one.count for one in counts[_VALUES_SHOWN:]) + uncounted
    if rest:
        print_text(f"  {human_count(rest):>12}  with other values")
