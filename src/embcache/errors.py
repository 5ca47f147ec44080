"""Every error that embcache raises: each names the thing, the value and the way out."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence

# Control, format, lone surrogates, line and paragraph separators: what moves a cursor, colours,
# hides or reorders what stands beside it.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_HARMLESS = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # the last two are part of words


class EmbcacheError(Exception):
    """Base class of every error that embcache raises on purpose.

    Its text can be shown on any terminal: messages quote names and texts of caches that may come
    from anybody.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(EmbcacheError, ValueError):
    """An argument has a value that cannot work."""


class InputError(EmbcacheError, ValueError):
    """A text, or a batch of them, cannot be encoded as it is."""


class RefusedTextsError(InputError):
    """The engine refuses texts, one that has no tokens, say; the others are encoded.

    Attributes:
        rows: Numbers of the refused texts (or pairs) in the call's inputs, from 0, ascending.
    """

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows


class ModelNotFoundError(EmbcacheError, OSError):
    """The model is neither a directory here, nor on the hub, nor in the local hub cache."""


class CacheError(EmbcacheError):
    """The cache on disk cannot be used as asked."""


class CacheFormatError(CacheError):
    """A space was written by a newer embcache, or not by embcache at all."""


class NewerFormatError(CacheFormatError):
    """A space was written by a newer embcache: it is whole, and this one cannot read it."""


class DamagedSpaceError(CacheError):
    """A file of a space is missing, or does not hold what was written to it."""


class CacheWriteError(CacheError):
    """The cache cannot be written: disk full, quota, permissions, a folder that is gone."""


class UnreachableError(CacheError):
    """What holds a cache does not answer, or refuses; the cache itself may be sound."""


class ForkedProcessError(EmbcacheError, RuntimeError):
    """A fork uses the cache that its process has used before; the cache itself is sound."""


class NotCopiedError(EmbcacheError, TypeError):
    """What uses a cache was to be pickled, for another process, or copied."""


class MissingTextsError(EmbcacheError):
    """Some texts are not in the cache, and `on_miss="raise"` forbids encoding them.

    Attributes:
        missing: Number of distinct texts that are not cached.
    """

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


class ChangedModelError(EmbcacheError):
    """The model returns other vectors for a space's canaries than those that are cached."""


class EngineError(EmbcacheError):
    """The engine could not be started, or failed while it encoded."""


class EngineNotInstalledError(EngineError, ImportError):
    """There are texts to encode and vllm is not installed."""


class DtypeMismatchError(EngineError):
    """The engine runs in another dtype than the space it would write to."""


class NonFiniteError(EngineError):
    """The engine returned NaN or infinity for at least half of a chunk, which was not written."""


class WrongOutputError(EngineError):
    """The engine returned something else than one vector for each text, in the texts' order."""


class ClusterError(EmbcacheError):
    """The cluster is out of reach, has no room, or cannot do what is asked of it."""


def printable(text: str) -> str:
    r"""A text in which nothing can control the terminal that it is shown on.

    Args:
        text: Any text.

    Returns:
        The same with control characters, bidirectional overrides and the like as Python writes
        them, `\x1b`, say. Line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if is_unseen(char) else char for char in text
    )


def is_unseen(char: str) -> bool:
    """Whether a character is not shown but controls how others are; not line ends and tabs."""
    return char not in _HARMLESS and unicodedata.category(char) in _UNSEEN


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 70


def shown(value: object) -> str:
    """Quote a value for a message.

    Args:
        value: Any value; a text may be as long as a book.

    Returns:
        Its `repr`; of a long one the beginning and the end.
    """
    return _REPR.repr(value)


def quoted(text: str, limit: int = 60) -> str:
    """Quote a prompt for people to read, so that a space at its end is seen.

    Args:
        text: The prompt.
        limit: Characters that are shown at most; a longer prompt ends in an ellipsis.
    """
    return repr(text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}")
