"""Turn what Lance raises into errors that say which files, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embcache.errors import CacheError, EmbcacheError

READ_FIX = (
    "If its files are damaged: `check_space` says which, and `merge_caches` into a new cache "
    "saves the rows of the others. Or move the folder away: its texts are encoded again."
)
WRITE_FIX = (
    "Rows committed before are safe and the next run goes on from there. Is the disk full, the "
    "folder not writable, or a file damaged (`check_space`)?"
)


@contextmanager
def lance_errors(doing: str, path: Path, fix: str) -> Iterator[None]:
    """Wrap anything that Lance raises, panics of its native code included, in `CacheError`."""
    try:
        yield
    except EmbcacheError:
        raise
    except Exception as error:
        raise CacheError(
            f"{doing} {path} failed: {type(error).__name__}: {error}. {fix}"
        ) from error
    except BaseException as error:
        # pyo3's PanicException derives from BaseException and cannot be imported by name.
        if type(error).__name__ != "PanicException":
            raise
        raise CacheError(f"{doing} {path} failed: Lance panicked: {error}. {fix}") from error
