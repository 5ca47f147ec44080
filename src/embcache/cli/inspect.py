"""Commands that look into a cache: ls, show, get, compare; and rm."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from embcache.cli.output import (
    console,
    human_count,
    human_size,
    human_time,
    one_line,
    print_error,
    print_json,
)
from embcache.cli.spaces import (
    DEFAULT_CACHE,
    CacheOption,
    JsonOption,
    PromptOption,
    SpaceArgument,
    find_space,
    find_space_or_cache,
    kind_of_folder,
    readable_spaces,
)
from embcache.errors import CacheError, ConfigError, quoted
from embcache.tools.compare import compare_spaces
from embcache.tools.describe import SpaceDescription, ValueCount, describe, remove_space
from embcache.tools.search import find_text

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
    app.command("rm", epilog="Example: embcache rm cache/<name>.lance --yes")(rm)


def list_spaces(
    cache: Annotated[
        Path, typer.Argument(metavar="[CACHE]", help="Directory of the cache.")
    ] = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """List the spaces of a cache."""
    spaces, errors = readable_spaces(cache)
    described = []
    for info in spaces:
        try:
            described.append(describe(info))
        except CacheError as broken:  # the others can still be listed
            errors.append(broken)
    if as_json:
        print_json([description_json(space) for space in described])
    elif described:
        out = console()
        out.print(_spaces_table(described, narrow=out.width < _NARROW))
    elif not errors:
        where = cache.expanduser().absolute()
        print(f"There are no spaces in {where}.{kind_of_folder(where)}")
    for error in errors:
        print_error(error)
    if errors:
        raise typer.Exit(1)


def show(
    space: SpaceArgument, cache: CacheOption = DEFAULT_CACHE, as_json: JsonOption = False
) -> None:
    """Show what a space is, and what it holds."""
    found = describe(find_space(space, cache))
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
        typer.Argument(metavar="TEXT...", help="A cached text; for scores, query and document."),
    ],
    prompt: PromptOption = None,
    cache: CacheOption = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Print the vector of a cached text, or the score of a pair."""
    info = find_space(space, cache)
    found = find_text(info, text, prompt or ())
    norm = float(np.linalg.norm(found.value.astype(np.float64)))
    is_score = len(found.texts) > 1
    if as_json:
        value = {"score": found.value[0]} if is_score else {"norm": norm, "vector": found.value}
        names = ("query", "document") if is_score else ("text",)
        prompts = ("query_prefix", "document_prefix") if is_score else ("prompt",)
        texts = dict(zip(names + prompts, found.texts + found.prompts, strict=True))
        print_json({"space": info.path, **texts, "n_tokens": found.n_tokens, **value})
        return
    for name, words, before in zip(
        ("query", "document") if is_score else ("text",), found.texts, found.prompts, strict=True
    ):
        print(f"{name:<10}{one_line(words)}")
        print(f"{'prompt':<10}{quoted(before)}")
    print(f"{'n_tokens':<10}{'unknown' if found.n_tokens is None else found.n_tokens}")
    if is_score:
        print(f"{'score':<10}{found.value[0]:.6g}")
        return
    print(f"{'norm':<10}{norm:.6f}")
    first = ", ".join(f"{component:.6g}" for component in found.value[:_COMPONENTS_SHOWN])
    more = ", ..." if len(found.value) > _COMPONENTS_SHOWN else ""
    print(f"{'vector':<10}[{first}{more}] ({len(found.value)} components; all with --json)")


def compare(
    a: Annotated[str, typer.Argument(help="A space, or a cache with one space.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    cache: CacheOption = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Compare the vectors of the texts that two spaces share."""
    first, second = find_space_or_cache(a, cache), find_space_or_cache(b, cache)
    found = compare_spaces(first.path, second.path)
    if as_json:
        print_json(found)
    else:
        print(found)


def rm(
    space: SpaceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: CacheOption = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Remove a space with all its rows."""
    found = describe(find_space(space, cache))
    what = f"{human_count(found.rows)} rows, {human_size(found.size_bytes)}"
    if not yes:
        if not _can_ask():
            raise ConfigError(
                f"{found.path} ({what}) is not removed: there is no terminal to ask on. Add --yes."
            )
        typer.confirm(f"Remove {found.path} ({what})?", abort=True, err=True)
    remove_space(found.path)
    if as_json:
        print_json({"path": found.path, "rows": found.rows, "size_bytes": found.size_bytes})
    else:
        print(f"Removed {found.path} ({what}).")


def description_json(found: SpaceDescription) -> dict[str, Any]:
    """A description as `--json` prints it."""
    fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    metadata = fields.pop("info").metadata
    return {
        "name": found.path.name.removesuffix(".lance"),
        "fingerprint": metadata.identity.fingerprint(),
        **dataclasses.asdict(metadata),
        **fields,
    }


def _can_ask() -> bool:
    return sys.stdin.isatty()


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
        metadata = space.info.metadata
        revision = [] if narrow else [metadata.identity.revision[:8]]
        written = human_time(space.last_written)
        table.add_row(
            metadata.identity.fingerprint(),
            metadata.model,
            *revision,
            metadata.identity.dtype,
            _prompts(space),
            "score" if space.value == "score" else str(space.dim),
            human_count(space.rows),
            human_size(space.size_bytes),
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
    metadata = found.info.metadata
    identity = metadata.identity
    facts: dict[str, object] = {
        "path": found.path,
        "model": metadata.model,
        "holds": "scores" if found.value == "score" else f"vectors of {found.dim} components",
        "rows": f"{human_count(found.rows)}, in {human_count(found.fragments)} fragments",
        "size": human_size(found.size_bytes),
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
        print(f"  {span:>18} {human_count(part.count):>12}  {bar}".rstrip())
    if found.tokens_unknown:
        print(f"  not recorded (n_tokens is null) for {human_count(found.tokens_unknown)} rows")


def _print_counts(name: str, counts: Sequence[ValueCount], uncounted: int) -> None:
    print(f"\n{name}")
    for one in counts[:_VALUES_SHOWN]:
        shown = "(null)" if one.value is None else quoted(one.value)
        print(f"  {human_count(one.count):>12}  {shown}")
    rest = sum(one.count for one in counts[_VALUES_SHOWN:]) + uncounted
    if rest:
        print(f"  {human_count(rest):>12}  with other values")
