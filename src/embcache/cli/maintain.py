"""Commands that look after a cache: check, compact, merge."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from embcache.cli.output import print_error, print_json, print_report
from embcache.cli.spaces import (
    DEFAULT_CACHE,
    CacheOption,
    JsonOption,
    find_space,
    kind_of_folder,
    open_cache,
)
from embcache.errors import CacheError
from embcache.store.space import table_exists
from embcache.tools.check import CheckReport, check_space
from embcache.tools.compact import CompactReport, compact_space
from embcache.tools.merge import merge_caches

SpacesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPACE",
        help="Folders of spaces, or parts of their names; all of the cache if none is named.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: embcache check --cache /data/cache")(check)
    app.command(epilog="Example: embcache compact e5-small --cache /data/cache")(compact)
    app.command(epilog="Example: embcache merge /mnt/usb/cache --cache /data/cache")(merge)


def check(
    spaces: SpacesArgument = None,
    cache: CacheOption = DEFAULT_CACHE,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Delete damaged rows, rows of other keys, and duplicates."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every row and file; say what is damaged.

    Exit code 1 if something is wrong and was not fixed.
    """
    reports: list[CheckReport] = []
    for folder in _folders(spaces, cache):
        report = check_space(folder, fix=fix)
        reports.append(report)
        if not as_json:
            typer.echo(str(report))
    if as_json:
        fields = [{"ok": report.ok, **vars(report)} for report in reports]
        print_json(fields)
    elif not reports:
        typer.echo(f"There is no space in {cache}.")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def compact(
    spaces: SpacesArgument = None,
    cache: CacheOption = DEFAULT_CACHE,
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
    """Make large files of small ones; free the disk of deleted rows and old versions."""
    reports: list[CompactReport] = []
    for folder in _folders(spaces, cache):
        reports.append(compact_space(folder, older_than=timedelta(minutes=older_than)))
        if not as_json:
            typer.echo(str(reports[-1]))
    if as_json:
        print_json(reports)
    elif not reports:
        typer.echo(f"There is no space in {cache}.")


def merge(
    other: Annotated[
        Path,
        typer.Argument(metavar="OTHER_CACHE", help="The cache to read from.", show_default=False),
    ],
    cache: Annotated[
        Path, typer.Option("--cache", metavar="DIR", help="The cache to add to.")
    ] = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Add to a cache what another one has and it has not.

    Rows are checked on the way; nothing is encoded again. After a kill, run it again.
    """
    report = merge_caches(other, cache)
    if not report.spaces and not report.failed:
        where = other.expanduser().absolute()
        raise CacheError(
            f"There is no space in {where}: nothing to merge.{kind_of_folder(where)} Give the "
            "directory of a cache: it holds folders called <model>--<dtype>--<fingerprint>.lance."
        )
    print_report(report, as_json=as_json)
    if report.failed:
        print_error(f"Spaces that could not be opened: {len(report.failed)}")
        raise typer.Exit(1)


def _folders(spaces: list[str] | None, cache: Path) -> list[Path]:
    """The folders that are meant; among all of a cache's, those that cannot be opened, too."""
    if spaces:
        return [_folder(space, cache) for space in spaces]
    folders = sorted(open_cache(cache).path.glob("*.lance"))
    return [folder for folder in folders if table_exists(folder) and not _foreign(folder)]


def _folder(space: str, cache: Path) -> Path:
    path = Path(space).expanduser()
    for folder in (path, cache.expanduser() / path):  # a damaged one cannot be looked into
        if folder.suffix == ".lance" and table_exists(folder):
            return folder
    return find_space(space, cache).path


def _foreign(folder: Path) -> bool:
    """Whether it can be opened and is no space of embcache's."""
    try:
        return not [*open_cache(folder.parent).spaces(folder.name)]
    except CacheError:
        return False
