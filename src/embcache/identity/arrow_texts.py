"""Texts that lie in Arrow memory: hashed there, made Python strings only where one is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from embcache.errors import InputError, shown

_AT_ONCE = 1000  # a few at a time: their memory is used again, where all would fault in new pages
_BYTES_AT_ONCE = 2**24
_MOST_STRINGS = 2**26  # bytes of a column whose strings are all made at once


class ArrowTexts(Sequence[str]):
    """A column of strings, as a sequence of texts.

    Who has all its vectors in a cache needs no text, only their bytes: in a new process, to make
    strings of 50,000 abstracts takes as long as to hash them. Strings of a column that is not too
    large are made together, at the first that is asked for; those of a larger one, which may be
    mapped from a file and more than fits into memory, each by itself, and kept nowhere. Where one
    is no UTF-8, as files of others may hold, `InputError` is raised when it is to be a string.

    Args:
        column: Strings, or large strings; none is null.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if not self._is_large:
            return self._strings[row]
        if isinstance(row, slice):
            return [self._string(each) for each in range(*row.indices(len(self)))]
        return self._string(row)

    def __iter__(self) -> Iterator[str]:
        if not self._is_large:
            return iter(self._strings)
        return map(self._string, range(len(self)))

    def utf8(self) -> Iterator[bytes]:
        """The texts' bytes, one after the other."""
        large = pa.types.is_large_string(self._column.type)
        kind = pa.large_binary() if large else pa.binary()
        for piece in _pieces(self._column.chunks):
            for start in range(0, len(piece), _AT_ONCE):
                some = piece.slice(start, _AT_ONCE)
                if _are_long(some):
                    yield from (text.as_buffer().to_pybytes() for text in some)
                else:
                    yield from some.cast(kind).to_pylist()

    @cached_property
    def _is_large(self) -> bool:
        return _bytes_of(self._column) > _MOST_STRINGS

    def _string(self, row: int) -> str:
        found = self._column[row]
        try:
            text: str = found.as_py()
        except UnicodeDecodeError:
            _check(found.as_buffer().to_pybytes(), row % len(self))
            raise
        return text

    @cached_property
    def _strings(self) -> list[str]:
        try:
            strings: list[str] = self._column.to_pylist()
        except UnicodeDecodeError:
            for row, raw in enumerate(self.utf8()):
                _check(raw, row)
            raise
        return strings


def _check(raw: bytes, row: int) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"row {row} is no text: {shown(raw)} is no UTF-8 from byte {error.start} on, and every "
            "string in Arrow has to be. Drop the row, or clean it where the column is made, with "
            "raw.decode('utf-8', 'replace')."
        ) from error


def _pieces(chunks: list[pa.Array]) -> Iterator[pa.Array]:
    """The same strings in pieces that are worth a call: chosen rows are a chunk each."""
    some: list[pa.Array] = []
    rows = 0
    for chunk in chunks:
        some.append(chunk)
        rows += len(chunk)
        if rows >= _AT_ONCE:
            yield from _joined(some)
            some, rows = [], 0
    yield from _joined(some)


def _joined(chunks: list[pa.Array]) -> list[pa.Array]:
    """As one, where that is not much to copy; nor more than the 2 GB that fit into one."""
    if len(chunks) <= 1 or _are_long(pa.chunked_array(chunks)):
        return chunks
    return [pa.concat_arrays(chunks)]


def _are_long(texts: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a copy of them would take much memory."""
    return _bytes_of(texts) > _BYTES_AT_ONCE


def _bytes_of(texts: pa.Array | pa.ChunkedArray) -> int:
    return int(pc.sum(pc.binary_length(texts)).as_py() or 0)
