"""Opening files, pipes and standard input as text, decompressed; and what goes wrong there."""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from embcache.errors import InputError, shown
from embcache.warm.batches import shown_name
from embcache.warm.formats import ARCHIVES
from embcache.warm.input_file import InputFile
from embcache.warm.remote_files import store_failure

LONGEST = 2**26
"""Characters of a line, of a field, of an element of an array: a book has some million. Without a
bound, a quote that nothing closes, or a small archive of very many letters, would take all memory.
"""

_HEAD = 128
_BUFFER = 2**18
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_TEXT = {
    b"\xff\xfe\0\0": "is UTF-32, and only UTF-8 is read: `iconv -f UTF-32 -t UTF-8` converts it",
    b"\xff\xfe": "is UTF-16, and only UTF-8 is read: `iconv -f UTF-16 -t UTF-8` converts it",
    b"\xfe\xff": "is UTF-16, and only UTF-8 is read: `iconv -f UTF-16 -t UTF-8` converts it",
    b"PK\x03\x04": "is a zip archive (an Excel file is one, too): unpack or export it",
    b"PAR1": "is a parquet file",
    b"ARROW1": "is an Arrow file",
}
_NUL = "has NUL bytes as UTF-16 has, and only UTF-8 is read: `iconv -f UTF-16 -t UTF-8` converts it"


@contextmanager
def reading(file: InputFile, kind: str) -> Iterator[None]:
    """Whatever libraries raise while a file is read, as one kind of error that names the file.

    Args:
        file: The file.
        kind: What it is read as.

    Raises:
        InputError: The file cannot be read as this, or its store refuses or does not answer.
    """
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{shown_name(file)} cannot be read as {kind}: what it says that it holds takes more "
            "memory than there is. Is it damaged, or made so?"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        failure = store_failure(str(file), error) if file.is_remote else None
        if failure is not None:
            raise InputError(failure) from None  # a store's own words may hold what was signed
        raise InputError(
            f"{shown_name(file)} cannot be read as {kind}: {type(error).__name__}: {error}"
        ) from error
    except (EOFError, lzma.LZMAError) as error:
        raise InputError(f"{shown_name(file)} is damaged or cut off: {error}") from error


@contextmanager
def opened_text(
    file: InputFile, newline: str | None = None, at_once: int | None = None
) -> Iterator[IO[str]]:
    """Open a file, a pipe or standard input as text; it may be compressed, as its bytes tell.

    What is no UTF-8 becomes lone surrogates, so that one row is left out and not the file.

    Args:
        file: The file.
        newline: As of `open`.
        at_once: As of `InputFile.stream`.

    Raises:
        InputError: It is an empty archive, no archive though named so, or no UTF-8 text at all.
        ConfigError: Standard input is closed.
    """
    with file.stream(at_once) as raw:
        stream = _text_bytes(raw, file)
        # Excel and Windows put a byte order mark in front.
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline)
        yield text


def lines_of(text: IO[str], name: str) -> Iterator[str]:
    """The lines of a file, from where it is read to.

    Args:
        text: The file.
        name: What it is called in messages.

    Raises:
        InputError: One is longer than `LONGEST`.
    """
    while line := text.readline(LONGEST):
        if len(line) == LONGEST and line[-1] not in "\r\n":
            raise InputError(
                f"{name} has a line of more than {LONGEST:,} characters, {shown(line)}, which is "
                "no text to embed: does it have line breaks, and is it what its name says?"
            )
        yield line


def _text_bytes(raw: Any, file: InputFile) -> Any:
    """The decompressed bytes, of which the first ones were looked at."""
    head, raw = _looked_into(raw)
    archive = file.name.lower().endswith(ARCHIVES)
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if archive and compression is None:
        found = f"begins with {head[:8]!r}" if head else "is empty (0 bytes)"
        raise InputError(f"{file} {found}, and is no compressed file as its name says: damaged?")
    if compression is not None:
        if compression == "xz":
            raw = lzma.LZMAFile(raw)  # noqa: SIM115 (closes nothing)
        else:
            raw = pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)
        head, raw = _looked_into(raw)
    reason = next((reason for magic, reason in _NO_TEXT.items() if head.startswith(magic)), None)
    if reason is None and 4 * head.count(0) > len(head):
        reason = _NUL
    if reason is not None:
        raise InputError(f"{shown_name(file)} {reason}.")
    return raw


def _looked_into(raw: Any) -> tuple[bytes, Any]:
    """The first bytes, and a stream that still has them: a pipe cannot be read twice."""
    head = raw.read(_HEAD)
    return head, io.BufferedReader(_Resumed(head, raw), _BUFFER)


class _Resumed(io.RawIOBase):
    """A stream whose first bytes were read already.

    Args:
        head: Those bytes.
        rest: The stream.
    """

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, with what there is."""
        data = self._head or self._rest.read(len(buffer))
        data, self._head = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
