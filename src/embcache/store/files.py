"""Files for other tools: complete or not there, and none replaced unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from embcache.errors import CacheError, ConfigError


def check_new(files: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace files.

    Raises:
        ConfigError: One of them exists, and `overwrite` is False.
    """
    for file in files:
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists. Give another name, or overwrite=True to replace it.")


@contextmanager
def new_files(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Names beside the files, to write to; they take the files' names at the end.

    After an error nothing is left of them, and a file that was there is as it was.

    Raises:
        CacheError: They cannot be written.
    """
    try:
        with ExitStack() as stack:
            temporary = [_temporary(file, stack) for file in files]
            yield temporary
            for made, file in zip(temporary, files, strict=True):
                os.replace(made, file)
    except OSError as error:
        raise CacheError(
            f"{files[0]} cannot be written: {error}. Is there such a folder, and room on the disk?"
        ) from error


def _temporary(file: Path, stack: ExitStack) -> Path:
    """A name beside the file, removed in the end if it is still there."""
    made = file.with_name(f".{file.name}.{os.getpid()}.part")
    stack.callback(made.unlink, missing_ok=True)
    return made
