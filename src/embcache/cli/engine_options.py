"""What commands that need mteb's tasks or an encoder read from the command line."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

import typer

from embcache.errors import ConfigError


def parse_json(option: str, text: str | None) -> Any:
    """A value that is given as JSON; None for none.

    Raises:
        typer.BadParameter: It is none.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text}: no JSON ({error}).") from error


def parse_prompts(text: str | None) -> dict[str, str] | Literal["registered"] | None:
    """`prompt_dict` of an encoder: "registered", or JSON."""
    prompts = text if text == "registered" else parse_json("--prompts", text)
    return cast("dict[str, str] | Literal['registered'] | None", prompts)


def mteb_tasks(
    names: list[str],
    benchmarks: list[str],
    splits: list[str] | None = None,
    subsets: list[str] | None = None,
) -> list[Any]:
    """Tasks by name, and those of benchmarks.

    Raises:
        ConfigError: mteb does not know one.
    """
    import mteb

    chosen: dict[str, Any] = {"eval_splits": splits or None, "hf_subsets": subsets or None}
    try:
        found = [mteb.get_task(name, **chosen) for name in names]
        for name in benchmarks:
            found += list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        raise ConfigError(f"mteb knows no such task or benchmark: {error.args[0]}") from error
    return found
