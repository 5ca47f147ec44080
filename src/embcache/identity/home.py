"""The user's home folder, which need not be known: HOME unset, in a container without a passwd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embcache.errors import ConfigError


def user_path(path: str | os.PathLike[str], argument: str) -> Path:
    """A path that a user gave, `~` expanded.

    Args:
        path: The path.
        argument: What errors call it.

    Raises:
        ConfigError: It begins with the home of a user who is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{argument}={os.fspath(path)!r}: {error} Write it out, or set HOME."
        ) from error


def absolute_path(path: str | os.PathLike[str], argument: str) -> Path:
    """A path that a user gave, whatever the working directory is later.

    Args:
        path: The path.
        argument: What errors call it.

    Raises:
        ConfigError: As `user_path`; or the path is relative, and the working directory is gone.
    """
    expanded = user_path(path, argument)
    try:
        return expanded.absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{argument}={os.fspath(path)!r} is relative, and the working directory was removed. "
            "Change to another one, or give an absolute path."
        ) from error


def working_directory() -> str:
    """The working directory, for messages about relative paths; it may have been removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "one that was removed"


@contextmanager
def home_needed() -> Iterator[None]:
    """Say what is missing where something within, mteb's import for one, looks for a home in vain.

    Raises:
        ConfigError: Something failed because there is no home. Other errors pass as they are.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_known():
            raise
        raise ConfigError(
            f"There is no home folder: HOME is not set, and user {os.getuid()} has no entry in "
            "passwd. mteb and the libraries under it keep their files there. Set HOME to a folder "
            "that can be written: HOME=/tmp/home, say."
        ) from error


def _is_known() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
