"""What a system refuses, by the number of its error, and what a person does about it."""

from __future__ import annotations

import errno
import re

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM)

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust says it
_NOT_FOUND = re.compile(r"\bNot found: ")  # as Lance says it of a file


def error_number(error: BaseException) -> int | None:
    """The system's number of what went wrong, in Python or in Lance; None where none is known."""
    said = str(error)
    if found := _OS_ERROR.search(said):
        return int(found[1])
    number = getattr(error, "errno", None)
    if number is None and _NOT_FOUND.search(said):
        return errno.ENOENT
    return number


def way_out(number: int | None) -> str | None:
    """What to do where writing is refused, a sentence; None where the number says nothing.

    Args:
        number: As `error_number`.
    """
    if number in NO_SPACE:
        return "Free some space, or have the quota raised."
    if number == errno.EROFS:
        return "It is mounted read-only: give another cache_path, or mount it for writing."
    if number in NO_PERMISSION:
        return (
            "Have its owner allow it (chmod or chown, with everything in it), or give another "
            "cache_path."
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return "This process may open no more files: raise its limit (ulimit -n)."
    if number == errno.EIO:
        return "The disk, or what serves it, fails: its log (dmesg) says more."
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "Was the folder removed, moved, or replaced by something else?"
    return None
