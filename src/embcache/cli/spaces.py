"""How all commands name spaces and caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CACHE = Path("cache")

CacheOption = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="The cache that SPACE is in.")
]
AddToOption = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="The cache to add to; made if need be.")
]
SpaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="Part of a space's name (of the model, dtype or fingerprint), or its folder, or a "
        "cache that holds one space.",
        show_default=False,
    ),
]
SpacesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPACE",
        help="Parts of spaces' names, or their folders, or caches that hold one; all of the cache "
        "if none is named.",
        show_default=False,
    ),
]
