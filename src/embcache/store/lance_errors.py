"""What goes wrong where Lance reads and writes, as errors of embcache that say what to do."""

from __future__ import annotations

import errno
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from embcache.errors import (
    CacheError,
    CacheWriteError,
    DamagedSpaceError,
    EmbcacheError,
    UnreachableError,
)
from embcache.store.forks import in_use
from embcache.store.refusals import error_number, way_out

if TYPE_CHECKING:
    from embcache.store.location import Location


class Fix(NamedTuple):
    """What to do where Lance fails at something.

    Attributes:
        text: For people, sentences.
        error: What the failure is raised as.
    """

    text: str
    error: type[CacheError]


READ_FIX = Fix(
    "If its files are damaged: `check_space` says which, and `merge_caches` into a new cache "
    "saves the rows of the others. Or move the folder away: its texts are encoded again.",
    DamagedSpaceError,
)
_SAFE = "Rows committed before are safe and the next run goes on from there."
WRITE_FIX = Fix(
    f"{_SAFE} Is the disk full, the folder not writable, or a file damaged (`check_space`)?",
    CacheWriteError,
)


def cause_of(error: CacheError) -> str:
    """What failed and why, without what to do about it: for who does something, or says better."""
    return str(error).replace(READ_FIX.text, "").strip()


_OUTAGE = (
    "The store did not answer, or refused, for minutes. What was committed before is safe there, "
    "and the next run goes on from it."
)

# Lance's own words for a layer of its code, and where in that an error was raised.
_CODE = re.compile(r"LanceError\(\w+\): |,? \S+\.rs:\d+:\d+")
_NO_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
_PATIENCE_SECONDS = 30
_CONFLICT = ("ommit conflict", "Too many concurrent writers")  # in Lance's message


@contextmanager
def lance_errors(doing: str, where: Location, fix: Fix) -> Iterator[None]:
    """Wrap anything that Lance raises, panics of its native code included, in a `CacheError`.

    Every call into Lance is made within it.

    Args:
        doing: What was being done, "Opening", say.
        where: The table.
        fix: What to do about it, and the error's class.

    Raises:
        CacheError: Lance failed: `fix.error`; but UnreachableError where reading fails for what
            is no damage (too many open files, no permission). Errors of embcache's own pass as
            they are.
    """

    def fail(error: BaseException) -> NoReturn:
        said = words_of(error)
        shown = where.without_secrets(said)
        kind: type[CacheError]
        if where.is_outage(error):
            kind = CacheWriteError if fix.error is CacheWriteError else UnreachableError
            message = f"{doing} {where} failed: {without_code(shown)}. {_OUTAGE}"
        else:
            kind = UnreachableError if fix is READ_FIX and _is_no_damage(error) else fix.error
            message = f"{doing} {where} failed: {without_code(shown)}. {_advice(fix, error)}"
        # A traceback shows the cause as well, so one with a secret in it is left out.
        raise kind(message) from (error if shown == said else None)

    with failing_as(fail):
        yield


@contextmanager
def failing_as(fail: Callable[[BaseException], NoReturn]) -> Iterator[None]:
    """Have whatever Lance raises, panics of its native code included, raised as something else.

    Args:
        fail: Is called with it, and raises. Errors of embcache's own pass as they are.
    """
    try:
        with in_use():
            yield
    except EmbcacheError:
        raise
    except BaseException as error:
        if not is_of_lance(error):
            raise
        fail(error)


def words_of(error: BaseException) -> str:
    """What was raised, as Lance says it."""
    kind = type(error).__name__ if isinstance(error, Exception) else "Lance panicked"
    return f"{kind}: {error}"


def without_code(said: str) -> str:
    """What Lance said, for people: without the places in its code."""
    return _CODE.sub("", said)


_SUPERSEDED = re.compile(r"_versions/\d+\.manifest was not found|Not found: .*/_transactions/")
# EPERM of a manifest's name: SFTP, and so sshfs, has no other word for one that is taken.
_TAKEN = re.compile(r"Unable to (rename file|open file .*\.manifest#\d+): .*\(os error 1\)")


def is_conflict(error: BaseException) -> bool:
    """Whether Lance refused a commit because of what other processes have committed meanwhile."""
    return any(said in str(error) for said in _CONFLICT) or _is_taken(error)


def _is_taken(error: BaseException) -> bool:
    """Whether another process took a version's number, and Lance does not understand that."""
    return _TAKEN.search(str(error)) is not None


def despite_conflicts(commit: Callable[[], object], attempts: int) -> None:
    """Commit; again, where Lance refuses it because of what others have committed meanwhile.

    And where a manifest is gone that Lance has listed a moment ago: a busy machine makes a second
    of that moment, and a compaction that keeps versions for no longer removes it. Or the file that
    says what a commit of another process did, which another host's list of files may not show yet:
    the next try begins after that commit.

    Args:
        commit: What commits, from the beginning each time.
        attempts: How often, at most; the last one's error is raised. Lance itself tries each for
            half a minute, but for conflicts that it does not understand, which is done here.
    """
    until, failed, waits = time.monotonic() + _PATIENCE_SECONDS, 0, itertools.count()
    while True:
        try:
            commit()
            return
        except (RuntimeError, OSError, ValueError) as error:
            again = is_conflict(error) or _SUPERSEDED.search(str(error))
            failed += not (_is_taken(error) and time.monotonic() < until)
            if not again or failed == attempts:
                raise
            time.sleep(min(1.0, 0.1 * 2 ** next(waits)) * random.uniform(0.5, 1))


def is_of_lance(error: BaseException) -> bool:
    """Whether Lance may have raised it: any Exception, and panics of its native code.

    pyo3's PanicException derives from BaseException and cannot be imported by name.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _is_no_damage(error: BaseException) -> bool:
    """Whether files may be whole that cannot be read now, or not by this user."""
    return isinstance(error, MemoryError) or error_number(error) in _NO_DAMAGE


def _advice(fix: Fix, error: BaseException) -> str:
    known = way_out(error_number(error))
    if fix is WRITE_FIX:
        return fix.text if known is None else f"{_SAFE} {known}"
    return known if known and _is_no_damage(error) else fix.text
