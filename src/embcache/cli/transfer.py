"""Commands that copy rows between two caches."""

from __future__ import annotations

from typing import Annotated

import typer

from embcache.cli.options import (
    DEFAULT_CACHE,
    AddToOption,
    ContainsFilter,
    JsonOption,
    PromptFilter,
    StorageOptions,
    location_of,
)
from embcache.cli.output import print_error, print_note, print_report, prompt_counts
from embcache.cli.progress import TransferDisplay
from embcache.errors import CacheError
from embcache.store import Location
from embcache.tools.describe import ValueCount, describe
from embcache.tools.find import find_spaces, hint_of
from embcache.tools.transfer import TransferReport, transfer

_SOURCE_SPACES = typer.Argument(
    metavar="SPACE",
    help="Parts of spaces' names; all of the cache that is read if none is named.",
    show_default=False,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: embcache push /mnt/team/cache e5-small --cache cache")(push)
    app.command(epilog='Example: embcache pull /mnt/team/cache e5 --prompt "query: "')(pull)


def push(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The cache to add to, a directory or URL; made if need be.",
            show_default=False,
        ),
    ],
    spaces: Annotated[list[str] | None, _SOURCE_SPACES] = None,
    cache: Annotated[
        str, typer.Option("--cache", metavar="CACHE", help="The cache to read from.")
    ] = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    prompt: PromptFilter = None,
    contains: ContainsFilter = None,
    as_json: JsonOption = False,
) -> None:
    """Copy rows of a cache into another one, those that it lacks.

    Rows are checked on the way; nothing is deleted. After a kill, run it again: it goes on.
    """
    source = location_of(cache, storage_options)
    into = location_of(target, storage_options, "target")
    _copy(source, into, spaces, prompt, contains, as_json=as_json)


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="The cache to read from, a directory or URL.", show_default=False
        ),
    ],
    spaces: Annotated[list[str] | None, _SOURCE_SPACES] = None,
    cache: AddToOption = DEFAULT_CACHE,
    storage_options: StorageOptions = None,
    prompt: PromptFilter = None,
    contains: ContainsFilter = None,
    as_json: JsonOption = False,
) -> None:
    """Copy rows of another cache into one's own, those that it lacks.

    Of the other one, the keys are read, and the rows that are missing. Rows are checked on the
    way; nothing is deleted. After a kill, run it again: it goes on.
    """
    where = location_of(source, storage_options, "source")
    into = location_of(cache, storage_options)
    _copy(where, into, spaces, prompt, contains, as_json=as_json)


def print_transfer(report: TransferReport, source: Location, *, as_json: bool) -> None:
    """What was copied; exit code 1 where a space could not be opened.

    Raises:
        CacheError: There was no space at all: what was named is probably no cache.
    """
    if not report.spaces and not report.failed:
        raise CacheError(
            f"There is no space in {source}: nothing to copy.{hint_of(source)} Give the place of "
            "a cache: it holds folders called <model>--<dtype>--<fingerprint>.lance."
        )
    print_report(report, as_json=as_json)
    if report.failed:
        print_error(f"Spaces that could not be opened: {len(report.failed)}")
        raise typer.Exit(1)


def _copy(
    source: Location,
    target: Location,
    spaces: list[str] | None,
    prompt: str | None,
    contains: str | None,
    *,
    as_json: bool,
) -> None:
    with TransferDisplay() as display:
        report = transfer(
            source, target, spaces, prompt=prompt, contains=contains, progress=display.update
        )
    filtered = prompt is not None or contains is not None
    if filtered and not report.added and any(space.unfit for space in report.spaces):
        known = _prompts(source, spaces)
        print_note(
            "no row that was not there already fits --prompt and --contains"
            + (f"; prompts: {known}" if known else "")
        )
    print_transfer(report, source, as_json=as_json)


def _prompts(source: Location, spaces: list[str] | None) -> str:
    """The prompts of the spaces that were copied from, most frequent first."""
    counts: dict[str | None, int] = {}
    for space in find_spaces(spaces, source):
        try:
            for one in describe(space).counts.get("prompt", []):
                counts[one.value] = counts.get(one.value, 0) + one.count
        except CacheError:  # it is one of those that the report says could not be opened
            continue
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return prompt_counts(ValueCount(value, count) for value, count in ordered)
