"""Whether a commit would go through: what Lance does with files for one, tried out in their place.

A commit puts files into three folders of the table: each is written under another name and then
renamed, but the manifest gets its name by a hard link, which fails where another process was
first. Looking at modes and owners instead would know nothing of access lists, quotas, mounts that
are read-only, and file systems without hard links; committing no row would leave a version behind.
"""

from __future__ import annotations

import errno
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from embcache.errors import CacheWriteError
from embcache.store.leftovers import CREATING, TRIAL
from embcache.store.manifests import COMMIT_FOLDERS, FOLDER
from embcache.store.refusals import NO_PERMISSION, NO_SPACE, way_out

_CONTENT = bytes(4096)  # a block: an empty file may fit where nothing else does


def try_commit(table: Path) -> None:
    """Do with files what a commit does, and leave nothing behind.

    Args:
        table: A table's folder. What of it does not exist is made elsewhere beside it, as a
            creation would make it.

    Raises:
        CacheWriteError: The file system refuses something.
    """
    for name in COMMIT_FOLDERS:
        folder = table / name
        if os.path.lexists(folder):
            _try_files(folder, folder, linked=name == FOLDER)
            continue
        above = next(place for place in folder.parents if os.path.exists(place))
        with (
            _refusal("making a folder", above),
            tempfile.TemporaryDirectory(prefix=CREATING, dir=above) as made,
        ):
            _try_files(Path(made), above, linked=name == FOLDER)


def _try_files(folder: Path, shown: Path, *, linked: bool) -> None:
    """Put a file into a folder as a commit does, and remove it; errors call the folder `shown`."""
    written = folder / f"{TRIAL}{uuid4().hex}"
    named = written.with_name(f"{written.name}-named")
    try:
        with _refusal("writing a file", shown), open(written, "xb") as file:
            file.write(_CONTENT)
        if linked:
            with _refusal("a hard link", shown):
                os.link(written, named)
            _try_taken(written, named, shown)
            with _refusal("removing a file", shown):
                written.unlink()
        else:
            with _refusal("renaming a file", shown):
                written.rename(named)
        with _refusal("removing a file", shown):
            named.unlink()
    finally:
        for left in (written, named):
            with suppress(OSError):  # gone already, or the error on its way is the better one
                left.unlink()


def _try_taken(written: Path, named: Path, folder: Path) -> None:
    """See that a name which is taken is refused: two commits would else get one number."""
    try:
        os.link(written, named)
    except OSError:  # EEXIST; SFTP has no word for it
        return
    raise CacheWriteError(
        f"Nothing is committed to {folder}: a hard link to a name that is taken is made there, so "
        "that two processes could commit over each other's rows. Put the cache on another file "
        "system. With read_only=True an encoder uses what is cached and writes nothing."
    )


@contextmanager
def _refusal(doing: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheWriteError(
            f"Nothing can be committed to {folder}: {doing} is refused there "
            f"({error.strerror or error}). {_fix(error.errno, doing, folder)} With read_only=True "
            "an encoder uses what is cached and writes nothing."
        ) from error


def _fix(number: int | None, doing: str, folder: Path) -> str:
    known = way_out(number)
    if doing == "a hard link" and number not in (*NO_SPACE, errno.EROFS):
        return (
            "Lance commits with one, and some file systems have none (gcsfuse, exFAT): put the "
            "cache on a local disk, and copy it here when nothing writes to it."
        )
    if number in NO_PERMISSION:
        return f"{_owner(folder)} {known}"
    if number == errno.ENOTDIR:
        return "A file is in a folder's place: `check_space` with fix=True sets it aside."
    return known or "Mend that, or give another cache_path."


def _owner(folder: Path) -> str:
    """Whose the folder is and who asks: the usual reason, in words."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        return "Not even its owner can be seen."
    return f"It belongs to {_user(owner)}, and this process is {_user(os.geteuid())}."


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # containers and clusters
        return f"uid {uid}"
