"""Commands that bring vectors out of a cache, and into one: export, import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from embcache.cli.output import print_note, print_report, prompt_counts
from embcache.cli.spaces import (
    DEFAULT_CACHE,
    CacheOption,
    ContainsFilter,
    JsonOption,
    OverwriteOption,
    PromptFilter,
    SpaceArgument,
    find_space,
)
from embcache.errors import ConfigError, shown
from embcache.identity.identity import Identity, normalize_dtype
from embcache.tools.describe import describe
from embcache.tools.export import export_space
from embcache.tools.import_ import ImportReport, import_file, import_numpy_cache


class Dtype(StrEnum):
    """What an export's values can be."""

    float32 = "float32"
    float16 = "float16"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog='Example: embcache export e5-small e5.parquet --prompt "query: "')(export)
    app.command("import", epilog="Example: embcache import e5.parquet --cache /data/cache")(import_)


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
    prompt: PromptFilter = None,
    contains: ContainsFilter = None,
    dtype: Annotated[
        Dtype, typer.Option(help="float16 files are half as large, and cannot be imported.")
    ] = Dtype.float32,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a space's rows, each checked, to a file for other tools."""
    info = find_space(space, cache)
    report = export_space(
        info.path,
        target,
        prompt=prompt,
        contains=contains,
        dtype=dtype.value,
        overwrite=overwrite,
    )
    print_report(report, as_json=as_json)
    if not report.rows and (prompt is not None or contains is not None):
        known = prompt_counts(describe(info).counts.get("prompt", []))
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
    cache: Annotated[
        Path, typer.Option("--cache", metavar="DIR", help="The cache to add to.")
    ] = DEFAULT_CACHE,
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
    prompt: Annotated[str, typer.Option(help="What was put in front of each text.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Add exported vectors to a cache, or those of mteb's NumpyCache.

    Rows of a file are verified. Of a NumpyCache folder, only you know which model, dtype and
    prompt it is of: name another one, and they are wrong hits.
    """
    if source.is_dir():
        report = _import_folder(source, cache, texts, model, revision, dtype, prompt)
    elif (texts, model, revision, dtype, prompt) != (None, None, None, None, ""):
        raise ConfigError(
            f"{source} is no folder: --texts, --model, --revision, --dtype and --prompt are for "
            "mteb's NumpyCache. A file of `export` says itself what it is."
        )
    else:
        report = import_file(source, cache)
    print_report(report, as_json=as_json)


def _import_folder(
    folder: Path,
    cache: Path,
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
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removesuffix("\n")
            yield _json_text(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line


def _json_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"{where} is no JSON: {error}. Give one string or object a line."
        ) from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ConfigError(f'{where} is neither a string nor an object with "text": {shown(line)}.')
    return text
