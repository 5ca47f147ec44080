"""Commands that keep a cache in order, and bring rows out of it and into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from embcache.cli.apart import Checked, check_apart
from embcache.cli.options import (
    DEFAULT_CACHE,
    AddToOption,
    CacheOption,
    ContainsFilter,
    JsonOption,
    OverwriteOption,
    PromptFilter,
    SpaceArgument,
    SpacesArgument,
    StorageOptions,
    location_of,
    prompt_option,
)
from embcache.cli.output import (
    human_count,
    print_hints,
    print_json,
    print_note,
    print_report,
    print_text,
    prompt_counts,
)
from embcache.cli.transfer import print_transfer
from embcache.errors import ConfigError, printable, shown
from embcache.identity.identity import Identity, normalize_dtype
from embcache.store import Location
from embcache.tools.compact import CompactReport, compact_space
from embcache.tools.describe import describe
from embcache.tools.export import ExportDtype, export_space
from embcache.tools.find import find_space, find_spaces
from embcache.tools.import_ import ImportReport, import_file, import_numpy_cache
from embcache.tools.merge import merge_caches


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: embcache check --cache /data/cache")(check)
    app.command(epilog="Example: embcache compact e5-small --cache /data/cache")(compact)
    app.command(epilog="Example: embcache rm cache/<name>.lance --yes")(rm)
    app.command(epilog="Example: embcache merge /mnt/usb/cache --cache /data/cache")(merge)
    app.command(epilog='Example: embcache export e5-small e5.parquet --prompt "query: "')(export)
    app.command("import", epilog="Example: embcache import e5.parquet --cache /data/cache")(import_)


def check(
    ctx: typer.Context,
    spaces: SpacesArgument = None,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what is damaged: rows that can still be read stay, others are encoded again "
            "when needed. Duplicates go too.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every row, file and version; say what is damaged.

    Exit code 1 if something is wrong and was not fixed.
    """
    reports: list[Checked] = []
    for report in check_apart(spaces, location_of(cache, storage_options), fix=fix):
        reports.append(report)
        if not as_json:
            print_text(report.text)
    if as_json:
        print_json([report.fields for report in reports])
    elif not reports:
        print_text(f"There is no space in {cache}.")
    else:
        print_hints(" ".join(report.text for report in reports), ctx)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def compact(
    spaces: SpacesArgument = None,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    older_than: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MINUTES",
            help="Keep what other processes may have open since then; 0 frees the disk at once, "
            "where no other process uses the cache.",
        ),
    ] = 60,
    as_json: JsonOption = False,
) -> None:
    """Make large files of small ones; free the disk of duplicates, deleted rows, old versions."""
    reports: list[CompactReport] = []
    for space in find_spaces(spaces, location_of(cache, storage_options)):
        reports.append(compact_space(space, older_than=timedelta(minutes=older_than)))
        if not as_json:
            print_text(reports[-1])
    if as_json:
        print_json(reports)
    elif not reports:
        print_text(f"There is no space in {cache}.")


def merge(
    other: Annotated[
        str,
        typer.Argument(
            metavar="OTHER_CACHE",
            help="The cache to read from, a directory or URL.",
            show_default=False,
        ),
    ],
    cache: AddToOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Add to a cache what another one has and it has not.

    Rows are checked on the way; nothing is encoded again. After a kill, run it again.
    """
    where = location_of(other, storage_options, "other")
    report = merge_caches(where, location_of(cache, storage_options))
    print_transfer(report, where, as_json=as_json)


def rm(
    space: SpaceArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a space with all its rows."""
    chosen = find_space(space, location_of(cache, storage_options))
    found = describe(chosen)
    what = f"{human_count(found.rows)} rows, {decimal(found.size_bytes)}"
    if not yes:
        if not _can_ask():
            raise ConfigError(
                f"{found.location} ({what}) is not removed: there is no terminal to ask on. Add "
                "--yes."
            )
        question = printable(f"Remove {found.location} ({what})?")
        typer.confirm(question, abort=True, err=True)
    chosen.location.remove()
    if as_json:
        print_json({"location": found.location, "rows": found.rows, "size_bytes": found.size_bytes})
    else:
        print_text(f"Removed {found.location} ({what}).")


def export(
    space: SpaceArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="File that ends in .parquet or .arrow (all columns), or in .npy (values alone, "
            "with <name>.texts.jsonl beside it).",
            show_default=False,
        ),
    ],
    cache: CacheOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    prompt: PromptFilter = None,
    contains: ContainsFilter = None,
    dtype: Annotated[
        ExportDtype, typer.Option(help="float16 files are half as large, and cannot be imported.")
    ] = "float32",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a space's rows, each checked, to a file for other tools."""
    chosen = find_space(space, location_of(cache, storage_options))
    report = export_space(
        chosen,
        target,
        prompt=prompt,
        contains=contains,
        dtype=dtype,
        overwrite=overwrite,
    )
    print_report(report, as_json=as_json)
    if not report.rows and (prompt is not None or contains is not None):
        known = prompt_counts(describe(chosen).counts.get("prompt", []))
        print_note("no row fits --prompt and --contains" + (f"; prompts: {known}" if known else ""))


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .parquet or .arrow file of `export`; or a folder of mteb's NumpyCache, which "
            "needs the options from --texts on.",
            show_default=False,
        ),
    ],
    cache: AddToOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="NumpyCache keeps no texts: a .txt with one a line, or a .jsonl of strings or of "
            'objects with "text".',
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub name of the vLLM model.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Its commit, all 40 digits.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What vLLM computed in.", show_default=False)
    ] = None,
    prompt: Annotated[str, prompt_option("The prompt in front of every text.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Add exported vectors to a cache, or those of mteb's NumpyCache.

    Rows of a file are verified. Of a NumpyCache folder, only you know which model, dtype and
    prompt it is of: name another one, and they are wrong hits.
    """
    where = location_of(cache, storage_options)
    if source.is_dir():
        report = _import_folder(source, where, texts, model, revision, dtype, prompt)
    elif (texts, model, revision, dtype, prompt) != (None, None, None, None, ""):
        raise ConfigError(
            f"{source} is no folder: --texts, --model, --revision, --dtype and --prompt are for "
            "mteb's NumpyCache. A file of `export` says itself what it is."
        )
    else:
        report = import_file(source, where)
    print_report(report, as_json=as_json)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _import_folder(
    folder: Path,
    cache: Location,
    texts: Path | None,
    model: str | None,
    revision: str | None,
    dtype: str | None,
    prompt: str,
) -> ImportReport:
    if texts is None or model is None or revision is None or dtype is None:
        raise ConfigError(
            f"{folder} is a folder. mteb's NumpyCache says neither which texts nor which model it "
            "is of: give --texts, --model, --revision and --dtype (and --prompt)."
        )
    name = normalize_dtype(dtype)
    if name == "auto":
        raise ConfigError("--dtype auto says nothing: give the dtype that vLLM computed in.")
    return import_numpy_cache(
        folder, cache, Identity(model, revision, name), _texts(texts), prompt=prompt
    )


def _texts(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise ConfigError(f"--texts {file} is no file.")
    # What is no UTF-8 is refused with its text, as everywhere.
    with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removesuffix("\n")
            yield _json_text(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line


def _json_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is no JSON: {error}. Give one string or object a line."
        ) from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ConfigError(f'{where} is neither a string nor an object with "text": {shown(line)}.')
    return text
