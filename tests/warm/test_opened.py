"""Archives, encodings and pipes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import ConfigError, InputError
from embcache.warm import Columns, json_files, opened
from embcache.warm.input_file import LocalFile
from embcache.warm.opened import reading
from embcache.warm.sources import estimate_rows
from tests.warm.reading import places, read

ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
LINES = [json.dumps({"text": f"{i} {hash(str(i))}"}) + "\n" for i in range(5000)]
DATA = "".join(LINES).encode()
TEXTS = [json.loads(line)["text"] for line in LINES]

archive = pytest.mark.parametrize("ending", ARCHIVES)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@archive
def test_archives(ending: str, tmp_path: Path) -> None:
    made = ARCHIVES[ending](DATA)
    path = write(tmp_path / f"x.jsonl.{ending.upper()}", made)
    assert read("jsonl", path) == TEXTS and estimate_rows("jsonl", [path]) is None
    assert read("jsonl", write(tmp_path / f"two.jsonl.{ending}", 2 * made)) == 2 * TEXTS
    assert read("jsonl", write(tmp_path / "unnamed.jsonl", made)) == TEXTS
    assert read("jsonl", write(tmp_path / f"of nothing.json.{ending}", ARCHIVES[ending](b""))) == []


@archive
@pytest.mark.parametrize("size", [0, 0.1, 0.5, 0.99])
def test_an_archive_that_is_empty_or_cut_off(ending: str, size: float, tmp_path: Path) -> None:
    made = ARCHIVES[ending](DATA)
    path = write(tmp_path / f"x.jsonl.{ending}", made[: int(size * len(made))])
    with pytest.raises(InputError, match=rf"x\.jsonl\.{ending} (is empty|cannot be read|is dam)"):
        read("jsonl", path, report=lambda row: None)


@archive
def test_no_archive_though_named_so(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.csv.{ending}", b"text\na\n")
    for act in (read, estimate):
        with pytest.raises(InputError, match=r"begins with b'text.*and is no compressed file"):
            act("csv", path)


def estimate(kind: str, path: Path) -> int | None:
    return estimate_rows(kind, [path])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [("csv", "id,text\n1,日本\n"), ("jsonl", '{"text": "a"}\n'), ("tsv", "text\n")],
)
def test_another_encoding(encoding: str, kind: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{kind}", text.encode(encoding))
    for act in (read, estimate):
        with pytest.raises(InputError, match=r"UTF-(16|32).*only UTF-8 is read: `iconv"):
            act(kind, path)
    path = write(tmp_path / f"x.{kind}.gz", gzip.compress(text.encode(encoding)))
    with pytest.raises(InputError, match=r"UTF-(16|32).*only UTF-8 is read: `iconv"):
        read(kind, path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 and more", "is a zip archive"),
        (b"PAR1 and more", "is a parquet file"),
        (b"ARROW1\0\0 and more", "is an Arrow file"),
    ],
)
def test_a_file_of_another_format(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read("csv", write(tmp_path / "x.csv", data))


@pytest.fixture
def pipe() -> Iterator[Callable[[bytes], str]]:
    """A pipe that somebody writes to, byte by byte at first, as a shell's `<(command)` names it."""
    made: list[int] = []

    def open_(data: bytes) -> str:
        out, into = os.pipe()
        made.append(out)

        def feed() -> None:
            with suppress(BrokenPipeError), open(into, "wb", buffering=0) as file:
                for at in range(20):
                    file.write(data[at : at + 1])
                file.write(data[20:])

        threading.Thread(target=feed, daemon=True).start()
        return f"/dev/fd/{out}"

    yield open_
    for descriptor in made:
        os.close(descriptor)


@pytest.mark.parametrize("compress", [bytes, *ARCHIVES.values()])
def test_lines_from_a_pipe(
    compress: Callable[[bytes], bytes], pipe: Callable[[bytes], str]
) -> None:
    name = pipe(compress(DATA))
    assert estimate_rows("jsonl", [name]) is None  # and nothing of it is gone
    assert read("jsonl", name) == TEXTS


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("csv", "\ufeffid;text\n1;a\n".encode()),
        ("tsv", b"id\ttext\n1\ta\n"),
        ("jsonl", b'[{"text": "a"}]'),
    ],
)
def test_other_formats_from_a_pipe(kind: str, data: bytes, pipe: Callable[[bytes], str]) -> None:
    assert read(kind, pipe(data)) == ["a"]


def test_arrow_from_a_pipe(pipe: Callable[[bytes], str]) -> None:
    table = pa.table({"text": TEXTS})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    assert read("arrow", pipe(sink.getvalue())) == TEXTS


def test_parquet_from_a_pipe(pipe: Callable[[bytes], str]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), sink)
    with pytest.raises(InputError, match="is a pipe, and parquet begins to be read at its end"):
        read("parquet", pipe(sink.getvalue()))


def test_a_fifo_beside_files(tmp_path: Path) -> None:
    path, fifo = write(tmp_path / "a.jsonl", b'{"text": "a"}\n'), tmp_path / "fifo"
    os.mkfifo(fifo)
    threading.Thread(target=lambda: fifo.write_bytes(b'{"text": "b"}\n'), daemon=True).start()
    assert estimate_rows("jsonl", [path, fifo]) is None
    assert read("jsonl", path, fifo, path) == ["a", "b", "a"]


def standard_input(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("jsonl", b'{"text": "a"}\n\n{"text": "b"}\n'),
        ("jsonl", gzip.compress(b'{"text": "a"}\n\n{"text": "b"}\n')),
        ("csv", b"text\na\n\nb"),
    ],
)
def test_standard_input(
    kind: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standard_input(data, monkeypatch)
    assert read(kind, "-") == ["a", "b"] and not sys.stdin.closed
    other = write(tmp_path / f"x.{kind}", b'{"text": "c"}\n' if kind == "jsonl" else b"text\nc\n")
    standard_input(data, monkeypatch)
    assert read(kind, other, "-", other) == ["c", "a", "b", "c"]
    assert estimate_rows(kind, ["-", other]) is None


def test_places_in_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(b'{"text": "a"}\n\n{"text": 1}\n', monkeypatch)
    found, bad = places("jsonl", Path("-"), Columns())
    assert list(found) == ["standard input, line 1"]
    assert bad == ["standard input, line 3: column 'text' is int 1, not a string"]


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="- is standard input, and that is closed"):
        read("jsonl", "-")


@pytest.mark.parametrize(
    ("kind", "before", "message"),
    [
        ("txt", "", "has a line of more than 100 characters, 'aaaa"),
        ("csv", "text\n", "has a line of more than 100 characters, 'aaaa"),
        ("tsv", "text\n", "has a line of more than 100 characters, 'aaaa"),
        ("jsonl", '{"text": "', "has a line of more than 100 characters, '"),
        ("jsonl", '[{"text": "', "row 0: broken JSON"),
    ],
)
def test_a_line_that_never_ends_is_not_read_into_memory(
    kind: str, before: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (opened, json_files):
        monkeypatch.setattr(module, "LONGEST", 100)
    (tmp_path / "x").write_text(before + "a" * 10**6)
    with pytest.raises(InputError, match=message):
        read(kind, tmp_path / "x")


def test_a_line_of_just_the_most_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "LONGEST", 5)
    (tmp_path / "x").write_text("abcd\nefgh\nijk")
    assert read("txt", tmp_path / "x") == ["abcd", "efgh", "ijk"]


def test_blanks_without_an_end_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(" " * (2**20 + 1))
    with pytest.raises(InputError, match="begins with more than 1,048,576 blanks"):
        read("jsonl", tmp_path / "x")


def test_more_memory_than_there_is() -> None:
    for error in (MemoryError(), pa.lib.ArrowMemoryError("malloc of size 2**60 failed")):
        named = pytest.raises(InputError, match=r"x cannot be read as arrow: .* more memory")
        with named, reading(LocalFile.at(Path("x")), "arrow"):
            raise error
