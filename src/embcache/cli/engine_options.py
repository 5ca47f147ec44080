"""What commands that need mteb's tasks or an encoder read from the command line."""

from __future__ import annotations

import json
import pkgutil
import sys
from pathlib import Path
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

    Args:
        names: Of mteb's tasks; or `module:Class`, a task of the user's own.
        benchmarks: Of mteb.
        splits: Keep only these; None, or none, for those that the tasks are evaluated on.
        subsets: Keep only these.

    Raises:
        ConfigError: There is no such task or benchmark, or a task has none of the subsets.
    """
    import mteb

    try:
        tasks = [own_task(name) if ":" in name else mteb.get_task(name) for name in names]
        for name in benchmarks:
            tasks += list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        raise ConfigError(f"mteb knows no such task or benchmark: {error.args[0]}") from error
    for task in tasks:
        if splits:
            task.filter_eval_splits(splits)
        if subsets:
            _keep_subsets(task, subsets)
    return tasks


def _keep_subsets(task: Any, subsets: list[str]) -> None:
    try:
        task.filter_languages(None, hf_subsets=subsets)
    except ValueError as error:
        raise ConfigError(
            f"task {task.metadata.name} has none of the subsets {', '.join(subsets)}: it has "
            f"{', '.join(task.hf_subsets)}."
        ) from error


def own_task(name: str) -> Any:
    """A task that mteb does not know: `module:Class`, found as `python -m` finds modules.

    Raises:
        ConfigError: There is no such module or class, or it is no task.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script's path begins with its own folder
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"task {name!r} cannot be imported: {error}. Give module:Class of a module in the "
            f"working directory ({Path.cwd()}) or of an installed package."
        ) from error
    task = found() if isinstance(found, type) else found
    if not hasattr(task, "metadata") or not hasattr(task, "load_data"):
        raise ConfigError(f"task {name!r} is {found!r}, and no task of mteb's kind (AbsTask).")
    return task
