"""Parts of sources: what is read at once, described so that another process can read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from embcache.warm.arrow_files import read_arrow
from embcache.warm.batches import Report, TextBatch
from embcache.warm.columns import Columns
from embcache.warm.delimited import Dialect, read_delimited
from embcache.warm.files import find_files
from embcache.warm.input_file import InputFile, LocalFile
from embcache.warm.json_files import read_json
from embcache.warm.lance_tables import lance_pieces, read_lance
from embcache.warm.opened import reading
from embcache.warm.parquet_files import parquet_pieces, read_parquet
from embcache.warm.plain_text import read_lines
from embcache.warm.remote_files import RemoteFile
from embcache.warm.streams import Shard, select

PART_BYTES = 2**26
"""Bytes of the wanted columns in a part of a file, about: enough to be worth a process's while."""

_THREADS = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A file, or neighbouring pieces of it, and how it is read.

    It can be pickled: read in another process, in another working directory, it gives the same
    texts with the same names and numbers, and the same rows are left out. Credentials of a store
    are those of the process that reads.

    Attributes:
        kind: A key of `FORMATS`.
        path: The file; its text is what it is called.
        columns: Where a row's text is, and what mteb makes of it.
        dialect: How CSV and TSV files are written.
        pieces: The row groups of a Parquet file, or fragments of a Lance table, that are read; None
            for all.
        version: Of a Lance table, in which `pieces` are counted; None for the newest.
        prompt: Put in front of each text; None where the encoder's prompts decide.
        prompt_type: "query", "document" or None, by which the encoder chooses its prompt.
    """

    kind: str
    path: InputFile
    columns: Columns
    dialect: Dialect = field(default_factory=Dialect)
    pieces: range | None = None
    version: int | None = None
    prompt: str | None = None
    prompt_type: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store, where any machine with credentials can read it."""
        return self.path.is_remote

    @property
    def can_be_shipped(self) -> bool:
        """Whether another process can read it: it is no pipe, and not standard input."""
        return self.path.can_be_read_again

    def read(self, report: Report) -> Iterator[TextBatch]:
        """Read its texts.

        Args:
            report: Is called with each row that is left out.

        Yields:
            Batches of at most `BATCH_ROWS` texts, numbered by line or row of the whole file.

        Raises:
            ConfigError: The file lacks a column.
            InputError: It cannot be read as this format, is damaged, or its store refuses or does
                not answer.
        """
        with reading(self.path, self.kind):
            for batch in self._texts(report):
                yield replace(batch, prompt=self.prompt, prompt_type=self.prompt_type)

    def split(self) -> list[Part]:
        """Divide it into parts of about `PART_BYTES`, where its format has pieces.

        Returns:
            Parts that are read one after the other as this one; itself, where it is one piece.

        Raises:
            ConfigError: The file lacks a column.
            InputError: It cannot be read as this format, is damaged, or its store refuses or does
                not answer.
        """
        if self.pieces is not None or not self.can_be_shipped:
            return [self]
        version, pieces = self.version, list[range]()
        with reading(self.path, self.kind):
            if self.kind == "parquet":
                pieces = parquet_pieces(self.path, self.columns, PART_BYTES)
            elif self.kind == "lance":
                version, pieces = lance_pieces(self.path, self.columns, PART_BYTES)
        if len(pieces) < 2:
            return [self]
        return [replace(self, pieces=piece, version=version) for piece in pieces]

    def _texts(self, report: Report) -> Iterator[TextBatch]:
        match self.kind:
            case "parquet":
                return read_parquet(self.path, self.columns, report, self.pieces)
            case "lance":
                return read_lance(self.path, self.columns, report, self.pieces, self.version)
            case "arrow":
                return read_arrow(self.path, self.columns, report)
            case "jsonl":
                return read_json(self.path, self.columns, report)
            case "txt":
                return read_lines(self.path, self.columns, report)
        return read_delimited(self.path, self.kind, self.columns, self.dialect, report)


@dataclass(frozen=True)
class Selected:
    """Some of the texts of a part, see `select`; it can be pickled, too.

    Attributes:
        part: The part: whole files, since texts are counted from the beginning of each.
        shard: Which texts to take.
        limit: How many texts of each file are looked at; None for all.
    """

    part: Part
    shard: Shard
    limit: int | None = None

    @property
    def path(self) -> InputFile:
        """The part's."""
        return self.part.path

    @property
    def is_remote(self) -> bool:
        """The part's."""
        return self.part.is_remote

    def read(self, report: Report) -> Iterator[TextBatch]:
        """Read the texts that are taken, see `Part.read`."""
        yield from select(self.part.read(report), self.shard, self.limit)


def parts(
    kind: str,
    files: Iterable[str | Path],
    columns: Columns,
    dialect: Dialect | None = None,
    *,
    split: bool = False,
) -> list[Part]:
    """Find files, and say how they are read.

    Args:
        kind: A key of `FORMATS`.
        files: See `find_files`.
        columns: Where a row's text is, and what mteb makes of it.
        dialect: How CSV and TSV files are written; None to find it out.
        split: Whether Parquet files and Lance tables are divided, see `Part.split`.

    Returns:
        A part for each file, or more; one after the other, they are all texts in their order.

    Raises:
        ConfigError: A pattern matches no file; with `split`, a file lacks a column.
        InputError: A directory cannot be listed, a store refuses or does not answer; with `split`,
            a file cannot be read.
    """
    found = [
        Part(kind, _file(path), columns, dialect or Dialect())
        for path in find_files(map(str, files), kind)
    ]
    return split_parts(found) if split else found


def split_parts(whole: Iterable[Part]) -> list[Part]:
    """Divide parts, several files at once.

    Args:
        whole: Parts.

    Returns:
        What `Part.split` makes of each, in their order.

    Raises:
        ConfigError: A file lacks a column.
        InputError: A file cannot be read.
    """
    return [piece for pieces in side_by_side(Part.split, whole) for piece in pieces]


def side_by_side(do: Callable[[Part], T], found: Iterable[Part]) -> list[T]:
    """Look at many files, several at once: in a store, each look is mostly waiting.

    Args:
        do: Looks at one.
        found: All of them.

    Returns:
        What `do` returns, in the order of the parts. What it raises is raised, and no further file
        is looked at.
    """
    pool = ThreadPoolExecutor(_THREADS)
    try:
        return list(pool.map(do, found))
    finally:
        pool.shutdown(cancel_futures=True)


def _file(path: Path | RemoteFile) -> InputFile:
    return LocalFile.at(path) if isinstance(path, Path) else path
