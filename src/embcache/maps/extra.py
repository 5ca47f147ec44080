"""Libraries of the extra `map`, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from embcache.errors import ConfigError

_PACKAGES = {"sklearn": "scikit-learn", "umap": "umap-learn"}  # else they are called as imported


def import_extra(module: str) -> Any:
    """Import a module of a library that embcache can do without.

    Args:
        module: Its dotted name, `sklearn.decomposition`, say.

    Returns:
        The module.

    Raises:
        ConfigError: The module cannot be imported; the message says how to install its package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(_missing(module, f"cannot be imported ({error})")) from error


def check_extra(library: str) -> None:
    """Refuse a library that is not installed, without importing it, which may be slow.

    Args:
        library: Name of the library as it is imported, `sklearn`, say.

    Raises:
        ConfigError: The library is not installed; the message says how to install its package.
    """
    if find_spec(library) is None:
        raise ConfigError(_missing(library, "is not installed"))


def _missing(module: str, problem: str) -> str:
    library = module.partition(".")[0]
    package = _PACKAGES.get(library, library)
    return (
        f"This map needs {package}, which {problem}. Run pip install '.[map]' in a clone of "
        f"embcache, or pip install {package}."
    )
