"""A short name for what a function does: two functions that may differ never have the same."""

from __future__ import annotations

import functools
import logging
import types
import uuid
from collections.abc import Callable
from typing import Any

import xxhash

logger = logging.getLogger(__name__)

_DIGITS = 12  # of 16: 48 bits tell the settings of one model apart
_given_up: dict[int, tuple[object, str]] = {}


def digest(text: str) -> str:
    """Twelve hex digits over a text.

    Args:
        text: The text; lone surrogates may be in it.
    """
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))[:_DIGITS]


def function_digest(function: Callable[..., Any]) -> str:
    """Twelve hex digits over what a function does, as far as that can be looked into.

    That is its code, its defaults, and the values of the names that it uses, functions among them:
    not its source, of which a prompt in a variable is no part; and not what it makes of some
    examples, since it may treat others otherwise.

    Args:
        function: A function, method, `functools.partial`, class, or object that can be called.

    Returns:
        The digits, the same in every process with the same Python. For what cannot be looked into,
        which is logged, they are of this object in this process alone.
    """
    from datasets.fingerprint import Hasher  # dill, which reads code; it comes with mteb

    try:
        return digest(Hasher.hash(_insides(function, frozenset())))
    except Exception as error:
        # Whatever a __getstate__ raises. Unknown means changed: the digits are those of no other.
        if id(function) not in _given_up:
            _given_up[id(function)] = (function, digest(str(uuid.uuid4())))
            logger.warning(
                "%r cannot be looked into (%s: %s): mteb will not find results of this run again "
                "in another process. Use a plain function or a string.",
                function,
                type(error).__name__,
                error,
            )
        return _given_up[id(function)][1]


def _insides(value: Any, outer: frozenset[int]) -> Any:
    """What a value is made of, with code in place of names by which pickles refer to functions."""
    if id(value) in outer:
        return "itself"
    outer |= {id(value)}
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, *sorted(map(repr, value))]  # in no order of this process
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, getattr(value, "__version__", None)]
    if isinstance(value, dict):
        return {key: _insides(part, outer) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_insides(part, outer) for part in value)]
    if not callable(value) or (type(value).__module__ == "builtins" and not _has_code(value)):
        return value
    return [type(value).__qualname__, *(_insides(part, outer) for part in _parts(value))]


def _has_code(value: Any) -> bool:
    kinds = (types.FunctionType, types.MethodType)
    return isinstance(value, kinds) or (isinstance(value, type) and value.__module__ != "builtins")


def _parts(value: Any) -> list[Any]:
    """What decides what a call of a value does."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, type(value.__self__), getattr(value.__self__, "__dict__", {})]
    if isinstance(value, types.FunctionType):
        names, found = _names(value.__code__), value.__globals__
        used = {name: found[name] for name in names if name in found}
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, used]
    if isinstance(value, type):
        kinds = (kind for kind in value.__mro__ if kind.__module__ != "builtins")
        return [
            {
                name: _plain(part)
                for name, part in vars(kind).items()
                if not name.startswith("__") or isinstance(part, types.FunctionType)
            }
            for kind in kinds
        ]
    # An object with a __call__; what functools.lru_cache returns has the function inside.
    wrapped = getattr(value, "__wrapped__", None)
    return [type(value), getattr(value, "__dict__", {})] if wrapped is None else [wrapped]


def _plain(part: Any) -> Any:
    """The function inside a static method, class method or property."""
    if isinstance(part, property):
        return part.fget
    return getattr(part, "__func__", part)


def _code(code: types.CodeType) -> list[Any]:
    """What a code object does, without where it stands in which file."""
    inner = [_insides(one, frozenset()) for one in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return [code.co_code, code.co_exceptiontable, inner, names, counts]


def _names(code: types.CodeType) -> list[str]:
    """Names that a function's code, and that of functions inside it, may look up."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return sorted({*code.co_names, *(name for part in inner for name in _names(part))})
