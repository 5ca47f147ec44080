"""What readers read: a file of this machine, a pipe, or (`remote_files`) a file in a store."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from embcache.errors import ConfigError
from embcache.warm.batches import STANDARD_INPUT


class InputFile(ABC):
    """A file, and how it is opened. Its text is its name in messages and beside rows.

    It can be pickled, and is the same file in another process.
    """

    is_remote = False
    """Whether any machine with credentials can read it."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    @abstractmethod
    def uri(self) -> str:
        """What Lance calls it: an absolute path, or a URL."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of it."""

    @property
    def can_be_read_again(self) -> bool:
        """Whether it is a file, and neither a pipe nor standard input."""
        return True

    @abstractmethod
    def stream(self, at_once: int | None = None) -> AbstractContextManager[Any]:
        """Open it for a reader of bytes that never seeks.

        Args:
            at_once: Bytes that are fetched at once, of a file in a store; None for what is best
                where all of it is read.
        """

    @abstractmethod
    def seekable(self, *, mapped: bool = False) -> AbstractContextManager[pa.NativeFile]:
        """Open it for a reader that seeks.

        Args:
            mapped: Whether what is read may be part of a memory map, where there is one.
        """

    @property
    def buffer_bytes(self) -> int:
        """How much is read at once where there is a choice."""
        return 2**16


@dataclass(frozen=True)
class LocalFile(InputFile):
    """A file of this machine, a pipe, or standard input.

    Attributes:
        path: As it was given, which is its name.
        absolute: Where it is, whatever the working directory.
    """

    path: Path
    absolute: Path

    @classmethod
    def at(cls, path: Path) -> LocalFile:
        """The file that a path means now.

        Args:
            path: Anything that `find_files` finds on this machine.
        """
        return cls(path, path if path == STANDARD_INPUT else path.absolute())

    def __str__(self) -> str:
        return str(self.path)

    @property
    def uri(self) -> str:
        """Its absolute path."""
        return str(self.absolute)

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.absolute.stat().st_size

    @property
    def can_be_read_again(self) -> bool:
        """Whether it is a file or a folder; one that is not there is neither pipe nor file."""
        return self.path != STANDARD_INPUT and (self.absolute.is_file() or self.absolute.is_dir())

    def stream(self, at_once: int | None = None) -> AbstractContextManager[Any]:
        """Open it; standard input is not closed at the end.

        Raises:
            ConfigError: Standard input is closed.
        """
        if self.path != STANDARD_INPUT:
            return self.absolute.open("rb")
        if sys.stdin is None:
            raise ConfigError("- is standard input, and that is closed.")
        return nullcontext(sys.stdin.buffer)

    def seekable(self, *, mapped: bool = False) -> AbstractContextManager[pa.NativeFile]:
        """Open it."""
        opened: AbstractContextManager[pa.NativeFile]
        opened = pa.memory_map(self.uri) if mapped else pa.OSFile(self.uri)
        return opened
