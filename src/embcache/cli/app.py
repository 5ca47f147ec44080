"""The typer app: which commands there are, and how errors leave the process."""

from __future__ import annotations

from typing import Annotated

import typer

from embcache.cli import evaluate, keep, look, transfer, warm
from embcache.cli import map as map_command
from embcache.cli.output import EmbcacheCommand, run
from embcache.store.schema import embcache_version

# No rich markup: texts and help have square brackets of their own, and plain help can be piped.
app = typer.Typer(
    name="embcache",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"embcache {embcache_version()}")
        raise typer.Exit


@app.callback(epilog="Example: embcache ls /data/cache")
def _embcache(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Look into, compare and look after a cache of embeddings."""


for _module in (look, map_command, keep, transfer, warm, evaluate):
    _module.register(app)
for _command in app.registered_commands:
    _command.cls = EmbcacheCommand


def main() -> None:
    """Run the command line; ends the process."""
    run(app, "embcache")
