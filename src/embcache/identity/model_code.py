"""Code that a model's configuration has run, where it lies in another repository.

`"auto_map": {"AutoModel": "organization/code--modeling.Model"}` in a config.json names a
repository without a commit: transformers runs what is there today, unless it is told a
`code_revision`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcache.errors import ModelNotFoundError
from embcache.identity.hub import Commit, read_file

MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Code:
    """What a configuration says of code.

    Attributes:
        repos: Files of other repositories by the repositories' names, or directories here.
        own: Whether code of the model's own repository is named, too.
    """

    repos: dict[str, list[str]]
    own: bool


def named_code(config: Any) -> Code:
    """Find the code that a configuration names, at whatever depth.

    Args:
        config: A configuration file's JSON, or a part of it.

    Returns:
        The repositories, by name, with the Python files that are loaded of each.
    """
    repos: dict[str, list[str]] = {}
    own = False
    for reference in _references(config):
        repo, found, module = reference.rpartition("--")
        if found:
            repos.setdefault(repo, []).append(f"{module.split('.')[0]}.py")
        else:
            own = True
    return Code(dict(sorted(repos.items())), own)


def code_of(place: Path | Commit | None, name: str, token: str | bool | None = None) -> Code | None:
    """Find the code that one of a model's JSON files names.

    Args:
        place: The model's directory, or its commit on the hub; None for no model.
        name: Name of the file.
        token: The hub's token, if it needs one.

    Returns:
        The code, none where there is no such file; None where that cannot be found out, because
        the hub is out of reach.

    Raises:
        ModelNotFoundError: The file names code, and is no JSON.
        OSError: The file cannot be read.
    """
    text: str | None = ""
    if isinstance(place, Commit) and place.snapshot is not None:
        place = Path(place.snapshot)
    if isinstance(place, Commit):
        text = read_file(place, name, token)
    elif place is not None and (place / name).is_file():
        text = (place / name).read_text(encoding="utf-8", errors="replace")
    if text is None:
        return None
    if '"auto_map"' not in text:
        return Code({}, own=False)
    try:
        return named_code(json.loads(text))
    except ValueError as error:
        raise ModelNotFoundError(
            f"{name} of {place} is no JSON ({error}). Download or save the model again."
        ) from error


def _references(config: Any) -> Iterator[str]:
    """The values of every `auto_map`: `module.Class`, or `repository--module.Class`."""
    if isinstance(config, list):
        for item in config:
            yield from _references(item)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key == "auto_map":
            yield from _strings(value)
        else:
            yield from _references(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
