"""One hash over what a folder holds that loading a model from it can read."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

import xxhash

from embcache.errors import ModelNotFoundError
from embcache.identity.machine_memo import Memo
from embcache.identity.unread_files import unread_files

logger = logging.getLogger(__name__)

_BLOCK = 8 * 2**20
# A file changed this recently may change again within its timestamp's resolution, unseen: it is
# hashed but not remembered (git's "racy" index entries have the same reason).
_SETTLED_AFTER_S = 2.0

Node = tuple[int, int]
"""Device and inode of a folder: what it is, whatever the links that lead to it."""


class Hasher(Protocol):
    """What hashlib and xxhash have in common."""

    def update(self, data: bytes, /) -> None:
        """Take more data."""

    def hexdigest(self) -> str:
        """The digest of all data so far."""


def hash_directory(path: Path, memo: Memo, *, exports: bool = True) -> str:
    """Hash a model directory's files: their relative names and their content.

    Symbolic links are entered, to files and to folders, so a model that is put together from
    links has the hash of its copy; a link that leads back to a folder above it is passed over.
    What no loading code reads is left out (hidden files, model cards, checkpoints of the training,
    see `unread_files`), and so is what is neither file nor folder. A link to nothing is left out
    with a warning.

    Args:
        path: The directory.
        memo: Remembers each file's hash by path, size, times and inode, and the files' hashes by
            the hash over them.
        exports: Whether the folders `onnx` and `openvino` count.

    Returns:
        32 hex digits.

    Raises:
        ModelNotFoundError: A file or folder cannot be read.
    """
    files = model_files(path, exports=exports)
    with ThreadPoolExecutor(max_workers=4) as pool:  # xxhash and reading release the GIL
        hashes = list(pool.map(lambda file: hash_file(file, memo), files.values()))
    digests = dict(zip((name.as_posix() for name in files), hashes, strict=True))
    lines = (f"{name}\0{digest}" for name, digest in digests.items())
    found = xxhash.xxh3_128_hexdigest("\n".join(lines).encode("utf-8", "surrogateescape"))
    if memo.get(_files_key(found)) is None:
        memo.put(_files_key(found), json.dumps(digests))
    return found


def hash_path(path: Path, memo: Memo) -> str:
    """Hash a file, or a folder as `hash_directory` does without `exports`.

    Args:
        path: The file or folder.
        memo: Remembers hashes.

    Returns:
        32 hex digits.

    Raises:
        ModelNotFoundError: It cannot be read.
    """
    return hash_directory(path, memo, exports=False) if path.is_dir() else hash_file(path, memo)


def changed_files(old: str, new: str, memo: Memo) -> list[str]:
    """Name the files in which two directories differ, as far as this machine remembers both.

    Args:
        old: What `hash_directory` returned for the one.
        new: What it returned for the other.
        memo: What was given to `hash_directory`.

    Returns:
        Relative names, sorted, those that only one has with `+` or `-` in front; none where a
        hash is not remembered.
    """
    before, after = (json.loads(memo.get(_files_key(one)) or "null") for one in (old, new))
    if before is None or after is None:
        return []
    return sorted(
        name if name in before and name in after else f"+{name}" if name in after else f"-{name}"
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    )


def model_files(path: Path, *, exports: bool = True) -> dict[PurePosixPath, Path]:
    """The files of a model's directory that count, links followed.

    Args:
        path: The directory.
        exports: Whether the folders `onnx` and `openvino` count.

    Returns:
        Where each lies, by its path in the directory, in the order of names.

    Raises:
        ModelNotFoundError: A file or folder cannot be read.
    """
    real = path.resolve()
    above = frozenset(_node(folder) for folder in (real, *real.parents))
    found = dict(sorted(_walk(path, PurePosixPath(), above), key=lambda one: one[0].parts))
    with _readable(path):
        unread = unread_files(
            {name: file for name, file in found.items() if file.exists()}, exports=exports
        )
    counted = {name: file for name, file in found.items() if name not in unread}
    if broken := [name for name, file in counted.items() if not file.exists()]:
        logger.warning(
            "%s has links to nothing: %s. They are taken as not there.",
            path,
            ", ".join(map(str, broken)),
        )
    return {name: file for name, file in counted.items() if name not in broken}


def hash_file(path: Path, memo: Memo) -> str:
    """Hash a file's content.

    Args:
        path: The file, or a link to it.
        memo: Remembers the hash by path, size, times and inode.

    Returns:
        32 hex digits.

    Raises:
        ModelNotFoundError: It cannot be read.
    """
    hasher = xxhash.xxh3_128()
    return remembered_digest(path, "file", hasher, memo)


def remembered_digest(path: Path, kind: str, hasher: Hasher, memo: Memo) -> str:
    """Digest a file, unless that was done since its last change.

    Args:
        path: The file, or a link to it.
        kind: Names what `hasher` computes.
        hasher: What has no data yet, or a head to put before the file's.
        memo: Remembers the digest by kind, path, size, times and inode.

    Returns:
        Hex digits.

    Raises:
        ModelNotFoundError: It cannot be read.
    """
    with _readable(path):
        is_ = path.stat()
        # The time of the inode's change, too: the other one can be set back, as rsync does.
        version = (is_.st_size, is_.st_mtime_ns, is_.st_ctime_ns, is_.st_ino)
        key = "\0".join((kind, str(path.resolve()), *map(str, version)))
        remembered = memo.get(key)
        if remembered is not None:
            return remembered
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    digest = str(hasher.hexdigest())
    if time.time() - is_.st_mtime > _SETTLED_AFTER_S:
        memo.put(key, digest)
    return digest


def _walk(
    folder: Path, inside: PurePosixPath, above: frozenset[Node]
) -> Iterator[tuple[PurePosixPath, Path]]:
    """Files below a folder, links to nothing among them, by their path in the model's folder."""
    with _readable(folder):
        entries = list(folder.iterdir())
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        name = inside / entry.name
        mode = _mode(entry)
        if mode is None or stat.S_ISREG(mode):
            yield name, entry
        elif stat.S_ISDIR(mode) and (node := _node(entry)) not in above:
            yield from _walk(entry, name, above | {node})


def _mode(path: Path) -> int | None:
    """What kind of thing it is, behind links; None for a link to nothing."""
    with _readable(path):
        try:
            return path.stat().st_mode
        except OSError:
            if path.is_symlink() and not path.exists():
                return None
            raise


def _node(folder: Path) -> Node:
    with _readable(folder):
        is_ = folder.stat()
    return is_.st_dev, is_.st_ino


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What cannot be looked into may decide a vector: said, never passed over."""
    try:
        yield
    except OSError as error:
        where = os.fspath(error.filename or path)
        raise ModelNotFoundError(
            f"{where!r} cannot be read ({error.strerror or error}), and what it holds may change "
            "vectors. Make it readable, or move it out of the model's folder."
        ) from error


def _files_key(digest: str) -> str:
    return f"files of folder\0{digest}"
