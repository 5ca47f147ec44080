"""Each claim of the table in docs/warming.md is run."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import EmbcacheError
from embcache.store import Location
from embcache.warm import BadRow, Columns, Dialect
from embcache.warm.formats import FORMATS
from embcache.warm.hub import read_dataset
from embcache.warm.sources import read_beir, read_files
from tests.conftest import ROOT
from tests.object_store import BUCKET, ObjectStore
from tests.spaces import make_rows
from tests.tools.test_merge import space_in

PAGE = (ROOT / "docs" / "warming.md").read_text(encoding="utf-8")
LINE = b'{"text": "a"}\n'


def claims() -> list[tuple[str, str, str]]:
    """Source, kind of claim and claim, of each cell."""
    [table] = re.findall(r"^\| source .*\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    found = []
    for row in table.splitlines():
        source, _, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for kind, cell in zip(("read", "left out", "ends"), cells, strict=True):
            found += [(source, kind, claim) for claim in cell.split("; ") if claim]
    return found


class Case:
    """A file, how it is read, and the texts that it has or what is said of it.

    Args:
        kind: A key of FORMATS, "beir" or "dataset".
        content: Of the file; of several by name; or what makes them in a folder.
        expected: The texts; a pattern of the only row that is left out; a pattern of the error.
        column: Of the texts.
        name: Of the file.
        patterns: What is read, instead of the file.
    """

    def __init__(
        self, kind: str, content: Any, expected: Any, column: str = "text", name: str = "x",
        dialect: Dialect | None = None, title: str | None = None, patterns: Any = None,
    ) -> None:  # fmt: skip
        self.kind, self.content, self.expected, self.name = kind, content, expected, name
        self.columns, self.dialect = Columns(column, title), dialect
        self.patterns = patterns

    def read(
        self, folder: Path, report: Callable[[BadRow], None],
        upload: Callable[[Path], str] | None = None,
    ) -> list[str]:  # fmt: skip
        files = self.content if isinstance(self.content, dict) else {self.name: self.content}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            elif content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if self.kind == "beir":
            stream = read_beir(str(folder), report, ("corpus", "queries"))
        elif self.kind == "dataset":
            split = self.patterns or "train"
            stream = read_dataset(str(folder), None, split, self.columns, report)
        else:
            place = folder if upload is None else upload(folder)
            names = [p.format(place) for p in self.patterns or ["{}/" + self.name]]
            stream = read_files(self.kind, names, self.columns, report, self.dialect)
        return [text for batch in stream for text in batch.texts]


def parquet(*texts: Any, **columns: Any) -> Callable[[Path], None]:
    table = pa.table({"text": list(texts), **columns} if texts else columns)
    return lambda path: pq.write_table(table, path)


def arrow(*texts: Any, stream: bool = False, **columns: Any) -> Callable[[Path], None]:
    table = pa.table({"text": list(texts), **columns} if texts else columns)

    def write(path: Path) -> None:
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as file:
            file.write_table(table)

    return write


def damaged(write: Callable[[Path], None], size: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:size])

    return cut


def fifo(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        os.mkfifo(path)
        threading.Thread(target=lambda: path.write_bytes(content), daemon=True).start()

    return make


def twice(path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)


def folder_with_links(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "a.jsonl").write_bytes(LINE)
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "b.jsonl").write_bytes(LINE)
    (path / "link").symlink_to(path.parent / "elsewhere")


STRINGS = [pa.array(["a"]).cast(t) for t in (pa.string(), pa.large_string(), pa.string_view())]
STRINGS.append(pa.array(["a"]).dictionary_encode())
NESTED = {"doc": [{"text": "a"}]}
NO_STRING = r"column '(text|title)' is (int|list|dict|float)"
CUT = gzip.compress(os.urandom(5000))[:3000]

CASES: dict[tuple[str, str], list[Case]] = {
    ("JSON lines", "one object a line"): [Case("jsonl", 2 * LINE, ["a", "a"])],
    ("JSON lines", "empty lines"): [Case("jsonl", b"\n" + LINE + b" \n\n", ["a"])],
    ("JSON lines", "nested columns by their path"): [
        Case("jsonl", '{"doc": {"text": "a"}}', ["a"], "doc.text")
    ],
    ("JSON lines", "broken JSON"): [Case("jsonl", LINE + b"{broken\n", "line 2: broken JSON")],
    ("JSON lines", "no object"): [Case("jsonl", LINE + b"[1]\n", "line 2: a JSON list, not an")],
    ("JSON lines", "a text that is null"): [
        Case("jsonl", '{"text": null}', "line 1: column 'text' is null")
    ],
    ("JSON lines", "a text or a title that is no string"): [
        *(Case("jsonl", f'{{"text": {v}}}', f"line 1: {NO_STRING}") for v in ("1", "[]", "NaN")),
        *(
            Case("jsonl", f'{{"text": "a", "title": {v}}}', f"line 1: {NO_STRING}", title="title")
            for v in ("1", '["A"]', "{}")
        ),
    ],
    ("JSON lines", "a text that is no UTF-8"): [
        Case("jsonl", b'{"text": "\xe9"}', "line 1: column 'text' is no UTF-8 text")
    ],
    ("JSON lines", "an object over several lines"): [
        Case("jsonl", '{\n "text": "a"\n}', "goes on in the next one")
    ],
    ("JSON lines", "no row with the column"): [Case("jsonl", '{"a": 1}', "no column 'text'")],
    ("JSON array", "on one line"): [Case("jsonl", '[{"text": "a"}, {"text": "b"}]', ["a", "b"])],
    ("JSON array", "over several lines"): [
        Case("jsonl", json.dumps([{"text": "a"}, {"text": "b"}], indent=2), ["a", "b"])
    ],
    ("JSON array", "no object"): [Case("jsonl", '[1, {"text": "a"}]', "row 0: a JSON int, not an")],
    ("JSON array", "a text that is no string"): [
        Case("jsonl", '[{"text": 1}]', f"row 0: {NO_STRING}")
    ],
    ("JSON array", "a lone surrogate"): [
        Case("jsonl", '[{"text": "\\ud83d"}]', "row 0: column 'text' is no UTF-8 text")
    ],
    ("JSON array", "a broken array"): [
        Case("jsonl", '[{"text": "a"}, {"te', "row 1: broken JSON"),
        Case("jsonl", '[{"text": "a"}', "broken JSON array"),
    ],
    ("JSON array", "a list inside an object"): [
        Case("jsonl", '{"data": [{"text": "a"}]}', "no column 'text', only 'data'"),
        Case("jsonl", '{"data": [\n{"text": "a"}]}', "goes on in the next one"),
    ],
    ("CSV", "commas, semicolons, tabs or bars"): [
        Case("csv", f"id{d}text\n1{d}a\n", ["a"]) for d in ",;\t|"
    ],
    ("CSV", "line breaks in quotes, as they are"): [
        Case("csv", f'text,id\n"a{end}b",1\n', [f"a{end}b"]) for end in ("\n", "\r\n", "\r")
    ],
    ("CSV", "another `--delimiter`"): [Case("csv", "id^text\n1^a\n", ["a"], dialect=Dialect("^"))],
    ("CSV", "columns by number, without a header"): [Case("csv", "1,a\n2,b\n", ["a", "b"], "2")],
    ("CSV", "other fields than the header has"): [
        Case("csv", f"id,text\n{row}\n", "line 2: . fields, and the first line has 2")
        for row in ("1", "1,a,b")
    ],
    ("CSV", "a broken quote"): [
        Case("csv", 'id,text\n1,"a"b\n', "line 2: broken CSV"),
        Case("csv", 'id,text\n1,"a\n2,b\n', "line 2: broken CSV .*lines 2 to 3 are lost"),
    ],
    ("CSV", "a text that is no UTF-8"): [Case("csv", b"text\n\xe9\n", "line 2: .* no UTF-8 text")],
    ("CSV", "no such column"): [Case("csv", "a,b\n1,2\n", "no column 'text', only 'a', 'b'")],
    ("CSV", "a column that is there twice"): [
        Case("csv", "text,text\na,b\n", "has 2 columns named")
    ],
    ("CSV", "a first line that two delimiters split"): [
        Case("csv", "1;a, b\n", "can be split", "2")
    ],
    ("CSV", "a number that may be a name"): [Case("csv", "0,1\na,b\n", "has a field '1'", "1")],
    ("TSV", "quotes as characters"): [Case("tsv", 'id\ttext\n1\t"a\n2\t"b"\n', ['"a', '"b"'])],
    ("TSV", "columns by number, without a header"): [Case("tsv", "0\ta\n1\tb\n", ["a", "b"], "2")],
    ("TSV", "`--quotes`, as in CSV"): [
        Case("tsv", 'id\ttext\n1\t"a\n""b"""\n', ['a\n"b"'], dialect=Dialect(quotes=True))
    ],
    ("TSV", "other fields than the first line has"): [
        Case("tsv", f"id\ttext\n{row}\n", "line 2: . fields, and the first line has 2")
        for row in ("1", "1\ta\tb")
    ],
    ("TSV", "a text that is no UTF-8"): [Case("tsv", b"text\n\xe9\n", "line 2: .* no UTF-8 text")],
    ("TSV", "no such column"): [Case("tsv", "0\ta\n", "no column '3', only '1', '2'", "3")],
    ("Archives of JSON, CSV, TSV, text", "`.gz`"): [
        Case("jsonl", gzip.compress(LINE), ["a"], name="x.jsonl.gz")
    ],
    ("Archives of JSON, CSV, TSV, text", "`.bz2`"): [
        Case("csv", bz2.compress(b"text\na\n"), ["a"], name="x.csv.bz2")
    ],
    ("Archives of JSON, CSV, TSV, text", "`.xz`"): [
        Case("tsv", lzma.compress(b"text\na\n"), ["a"], name="x.tsv.xz")
    ],
    ("Archives of JSON, CSV, TSV, text", "`.zst`"): [
        Case("jsonl", pa.compress(LINE, "zstd", asbytes=True), ["a"], name="x.json.zst")
    ],
    ("Archives of JSON, CSV, TSV, text", "several in one"): [
        Case("jsonl", 2 * gzip.compress(LINE), ["a", "a"], name="x.jsonl.gz")
    ],
    ("Archives of JSON, CSV, TSV, text", "without the ending"): [
        Case("jsonl", lzma.compress(LINE), ["a"], name="x.jsonl")
    ],
    ("Archives of JSON, CSV, TSV, text", "an empty archive"): [
        Case("jsonl", b"", r"x\.jsonl\.gz is empty", name="x.jsonl.gz")
    ],
    ("Archives of JSON, CSV, TSV, text", "an archive that is cut off"): [
        Case("jsonl", CUT, "Truncated compressed stream", name="x.jsonl.gz")
    ],
    ("Archives of JSON, CSV, TSV, text", "no archive, though named so"): [
        Case("jsonl", LINE, "and is no compressed file", name="x.jsonl.xz")
    ],
    ("Pipes", "`-`, standard input, beside files"): [
        Case("jsonl", LINE, ["a", "stdin", "a"], patterns=["{}/x", "-", "{}/x"])
    ],
    ("Pipes", "`<(zcat x.gz)`, `/dev/stdin`"): [Case("jsonl", fifo(LINE), ["a"])],
    ("Pipes", "compressed ones"): [Case("csv", fifo(gzip.compress(b"text\na\n")), ["a"])],
    ("Pipes", "`-` twice"): [Case("jsonl", LINE, "- is named twice", patterns=["-", "-"])],
    ("Encodings", "UTF-8"): [Case("csv", "text\né\n", ["é"])],
    ("Encodings", "UTF-8 with a byte order mark"): [
        Case("csv", "\ufefftext\na\n", ["a"]),
        Case("jsonl", "\ufeff".encode() + LINE, ["a"]),
    ],
    ("Encodings", "UTF-16"): [
        Case("csv", "text\na\n".encode(e), "UTF-16.*iconv") for e in ("utf-16", "utf-16-le")
    ],
    ("Encodings", "UTF-32"): [Case("jsonl", LINE.decode().encode("utf-32"), "UTF-32.*iconv")],
    ("Folders", "folders below, and links to folders"): [
        Case("jsonl", folder_with_links, ["a", "a"], name="sub")
    ],
    ("Folders", "endings in any case"): [
        Case("jsonl", {"x.JSONL": LINE, "x.Json": LINE}, ["a", "a"], patterns=["{}"])
    ],
    ("Folders", "no file of the format"): [
        Case("jsonl", {"x.csv": b"text\n"}, "there is no such jsonl file", patterns=["{}"])
    ],
    ("BEIR folders", "`corpus.jsonl` and `queries.jsonl`, compressed or not"): [
        Case("beir", {"corpus.jsonl": LINE, "queries.jsonl.xz": lzma.compress(LINE)}, ["a", "a"])
    ],
    ("BEIR folders", "a text that is null"): [
        Case("beir", {"corpus.jsonl": '{"text": null}', "queries.jsonl": LINE}, "line 1: .*is null")
    ],
    ("BEIR folders", "one of both is missing"): [
        Case("beir", {"corpus.jsonl": LINE}, r"there is no queries\.jsonl")
    ],
    ("Data sets", "from the hub or a folder, streamed"): [
        Case("dataset", {"x.parquet": parquet("a")}, ["a"])
    ],
    ("Data sets", "nested columns by their path"): [
        Case("dataset", {"x.parquet": parquet(**NESTED)}, ["a"], "doc.text")
    ],
    ("Data sets", "a text that is null"): [
        Case("dataset", {"x.parquet": parquet("a", None)}, "row 1: column 'text' is null")
    ],
    ("Data sets", "a text that is no string"): [
        Case("dataset", {"x.parquet": parquet([1])}, f"row 0: {NO_STRING}")
    ],
    ("Data sets", "a split that is not there"): [
        Case("dataset", {"x.jsonl": LINE}, "cannot be opened .*split no", patterns="no")
    ],
    ("Data sets", "no such column"): [
        Case("dataset", {"x.jsonl": LINE}, "no column 'b', only", "b")
    ],
    ("Data sets", "a file that is broken, or has other types"): [
        Case(
            "dataset", {"a.parquet": parquet("a"), "b.parquet": parquet([1])}, "read on from row 1"
        ),
        Case("dataset", {"a.jsonl": LINE, "b.jsonl": b"{broken"}, "read on from row 1"),
    ],
}
for source, write, kind in (("Parquet", parquet, "parquet"), ("Arrow", arrow, "arrow")):
    CASES |= {
        (source, "strings of any type"): [Case(kind, write(text=one), ["a"]) for one in STRINGS],
        (source, "strings as BINARY"): [Case(kind, write(b"a"), ["a"])],
        (source, "nested columns by their path"): [Case(kind, write(**NESTED), ["a"], "doc.text")],
        (source, "a text that is null"): [
            Case(kind, write("a", None), "row 1: column 'text' is null")
        ],
        (source, "a text or a title that is no string"): [
            *(Case(kind, write(value), f"row 0: {NO_STRING}") for value in (1, 0.5, [1], {"a": 1})),
            Case(kind, write("a", title=[["T"]]), f"row 0: {NO_STRING}", title="title"),
        ],
        (source, "bytes that are no UTF-8"): [
            Case(kind, write(b"a", b"\xe9"), "row 1: column 'text' is no UTF-8 text")
        ],
        (source, "a damaged or empty file"): [
            Case(kind, damaged(write(*map(str, range(999))), size), f"cannot be read as {kind}")
            for size in (0, 50, 900)
        ],
        (source, "no such column"): [Case(kind, write(b=["a"]), "no column 'text', only 'b'")],
        (source, "a column that is there twice"): [Case(kind, twice, "has 2 columns named")],
        (source, "a pipe"): [Case(kind, fifo(b"PAR1"), "is a pipe, and parquet begins")],
        (source, "files"): [Case(kind, arrow("a"), ["a"])],
        (source, "streams"): [Case(kind, arrow("a", stream=True), ["a"])],
    }


def piped_stream(path: Path) -> None:
    arrow("a", stream=True)(path)
    content = path.read_bytes()
    path.unlink()
    fifo(content)(path)


def table(*texts: Any, **columns: Any) -> Callable[[Path], None]:
    rows = pa.table({"text": list(texts), **columns} if texts else columns)
    return lambda path: lance.write_dataset(rows, str(path)) and None


def without_its_data(path: Path) -> None:
    table("a")(path)
    for file in (path / "data").iterdir():
        file.unlink()


def space(path: Path) -> None:
    space_in(Location.of(path)).add(make_rows(["a", "b"]))


CASES |= {
    ("Lance tables", "tables"): [
        Case("lance", table("a"), ["a"], name=name) for name in ("x.lance", "x")
    ],
    ("Lance tables", "folders of tables"): [
        Case(
            "lance",
            {"t/x.lance": table("a"), "t/sub/y.lance": table("b")},
            ["b", "a"],
            patterns=["{}/t"],
        )
    ],
    ("Lance tables", "a cache's spaces"): [Case("lance", space, ["a", "b"], name="cache")],
    ("Lance tables", "strings of any type"): [Case("lance", table(text=s), ["a"]) for s in STRINGS],
    ("Lance tables", "strings as BINARY"): [Case("lance", table(b"a"), ["a"])],
    ("Lance tables", "nested columns by their path"): [
        Case("lance", table(**NESTED), ["a"], "doc.text")
    ],
    ("Lance tables", "a text that is null"): [
        Case("lance", table("a", None), "row 1: column 'text' is null")
    ],
    ("Lance tables", "a text or a title that is no string"): [
        *(Case("lance", table(value), f"row 0: {NO_STRING}") for value in (1, 0.5, [1], {"a": 1})),
        Case("lance", table("a", title=[["T"]]), f"row 0: {NO_STRING}", title="title"),
    ],
    ("Lance tables", "bytes that are no UTF-8"): [
        Case("lance", table(b"a", b"\xe9"), "row 1: column 'text' is no UTF-8 text")
    ],
    ("Lance tables", "a damaged table"): [
        Case("lance", without_its_data, "x cannot be read as lance: .*Not found")
    ],
    ("Lance tables", "no such column"): [
        Case("lance", table(b=["a"]), "no column 'text', only 'b'")
    ],
    ("Lance tables", "a file"): [Case("lance", LINE, "x cannot be read as lance")],
    ("Lance tables", "a pipe"): [
        Case("lance", LINE, "a pipe, and a Lance table a folder", patterns=["-"])
    ],
    ("URLs", "files"): [Case("jsonl", LINE, ["a"])],
    ("URLs", "folders"): [
        Case("csv", {"x.csv": "text\na\n", "sub/y.csv": "text\nb\n"}, ["b", "a"], patterns=["{}/"])
    ],
    ("URLs", "globs"): [
        Case("parquet", {"x.pq": parquet("a"), "y": b""}, ["a"], patterns=["{}/**/[x].p?"])
    ],
    ("URLs", "archives"): [Case("txt", gzip.compress(b"a\n"), ["a"], name="x.txt.gz")],
    ("URLs", "what is left out of a file"): [Case("jsonl", LINE + b"[1]\n", "line 2: a JSON list")],
    ("URLs", "no such bucket"): [
        Case("jsonl", LINE, "there is no such bucket", patterns=["s3://nobucket/x"])
    ],
    ("URLs", "no such file"): [
        Case("jsonl", LINE, "there is no such jsonl file in the store", patterns=["{}/y"])
    ],
    ("URLs", "user, password or query in it"): [
        Case("jsonl", LINE, "without user, password, query", patterns=[url])
        for url in ("s3://u:p@bucket/x", "s3://u@bucket/x", "s3://bucket/x?p=q")
    ],
    ("URLs", "http:// and https://"): [
        Case("jsonl", LINE, "not read from http:// or", patterns=[f"{one}://host/x"])
        for one in ("http", "https")
    ],
    ("Plain text", "one text a line"): [Case("txt", "a b\r\nc\n\u2028d", ["a b", "c", "d"])],
    ("Plain text", "empty lines"): [Case("txt", "\na\n \n\nb\n\n", ["a", "b"])],
    ("Plain text", "a text that is no UTF-8"): [
        Case("txt", b"a\n\n\xe9\n", "line 3: column 'text' is no UTF-8 text")
    ],
    ("Plain text", "another column than `text`"): [
        Case("txt", "a\n", "x has no column 'b', only 'text'", "b"),
        Case("txt", "a\n", "x has no column 'title', only 'text'", title="title"),
    ],
}


CASES["Arrow", "streams from a pipe"] = [Case("arrow", piped_stream, ["a"])]


def uploads(store: ObjectStore) -> Callable[[Path], str]:
    """What copies a folder into the store, and returns its URL there."""

    def upload(folder: Path) -> str:
        url = store.url()
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{url.removeprefix(f's3://{BUCKET}/')}/{path.relative_to(folder)}"
                obstore.put(store.client(), name, path.read_bytes())
        return url

    return upload


@pytest.mark.parametrize(("source", "kind", "claim"), claims())
def test_a_claim(
    source: str, kind: str, claim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    upload = None
    if source == "URLs":
        store = request.getfixturevalue("object_store")
        upload = uploads(store)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
    assert CASES.get((source, claim)), "the claim has no case"
    for number, case in enumerate(CASES[source, claim]):
        stdin = io.TextIOWrapper(io.BytesIO(b'{"text": "stdin"}\n'))
        monkeypatch.setattr(sys, "stdin", stdin)
        folder = tmp_path / str(number)
        folder.mkdir()
        bad: list[BadRow] = []
        if kind == "ends":
            with pytest.raises(EmbcacheError, match=case.expected):
                case.read(folder, bad.append, upload)
            continue
        texts = case.read(folder, bad.append, upload)
        if kind == "read":
            assert (texts, bad) == (case.expected, [])
        else:
            [row] = bad
            assert re.search(case.expected, str(row))


def test_the_page_names_every_ending_and_every_format() -> None:
    for kind, endings in FORMATS.items():
        plain = [e for e in endings if not e.endswith((".gz", ".bz2", ".xz", ".zst"))]
        assert f"`--{kind}`" in PAGE and all(f"`{ending}`" in PAGE for ending in plain)
