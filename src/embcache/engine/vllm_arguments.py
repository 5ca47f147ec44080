"""Which arguments the installed vLLM takes, found out without importing it.

Importing vllm takes seconds, and constructing an encoder must not cost them. The classes that hold
vLLM's arguments are dataclasses, so their names stand in its source as annotated assignments.
"""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Iterable, Mapping, Set
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embcache.errors import ConfigError
from embcache.identity.dtype import vllm_version

_ENGINE_ARGS = ("engine/arg_utils.py", "EngineArgs")
_POOLER_CONFIG = ("config/pooler.py", "PoolerConfig")
# What `VllmEngine` gives to EngineArgs itself.
_SET_HERE = frozenset({"model", "revision", "runner", "convert"})
# Similarity of two names, from 0 to 1: from which one is shown as what may be meant, and from which
# it is certainly meant.
_NEAR = 0.6
_MISSPELT = 0.8


def check_engine_arguments(other: Set[str], pooler_config: Any, *, own: bool) -> None:
    """Refuse arguments that the installed vLLM does not know, before it is started with them.

    Where no vllm is installed, or its source is not where it is looked for, nothing is refused.

    Args:
        other: Names of arguments of `vllm.EngineArgs` that embcache has no argument for.
        pooler_config: vLLM's PoolerConfig, or a dict of its fields, whose names are looked at.
        own: Whether they are for vLLM's own engine. Another one (`make_engine`) may take what vLLM
            does not know, unless it is so near to a name of vLLM's that it is probably misspelt.

    Raises:
        ConfigError: A name is unknown, or is set by the wrapper itself.
    """
    if own and (fixed := sorted(other & _SET_HERE)):
        raise ConfigError(f"{fixed[0]} is set by this wrapper. Leave it out.")
    if other:
        _refuse_unknown(sorted(other), _fields(*_ENGINE_ARGS), "an argument of EngineArgs", own)
    if isinstance(pooler_config, Mapping):
        what = "a field of pooler_config (PoolerConfig)"
        _refuse_unknown(pooler_config, _fields(*_POOLER_CONFIG), what, own)


def _refuse_unknown(given: Iterable[str], known: frozenset[str], what: str, own: bool) -> None:
    if not known:
        return
    for name in given:
        near = difflib.get_close_matches(name, sorted(known), 3, _NEAR if own else _MISSPELT)
        if name in known or not (own or near):
            continue
        hint = f"Is {' or '.join(near)} meant?" if near else "Leave it out."
        raise ConfigError(f"{name} is not {what} in {vllm_version()}, which is installed. {hint}")


@functools.cache
def _fields(file: str, name: str) -> frozenset[str]:
    """Names of a dataclass's fields, read from vLLM's source; none where it cannot be read."""
    spec = find_spec("vllm")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / file
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # A class with a base may have fields that do not stand in it.
            if isinstance(node, ast.ClassDef) and node.name == name and not node.bases:
                fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
                return frozenset(field.id for field in fields if isinstance(field, ast.Name))
    return frozenset()
