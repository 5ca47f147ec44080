from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from embcache import ConfigError, InputError
from embcache.warm import BadRow, Columns
from embcache.warm.files import find_files
from embcache.warm.sources import estimate_rows, read_beir, read_files
from tests.warm.reading import read, refuse

ROWS = [{"id": str(i), "title": "T" * (i % 3), "text": f" text {i}, «ä» 😀 "} for i in range(9000)]
TEXTS = [row["text"] for row in ROWS]
DOCUMENTS = [text.strip() for text in TEXTS]
JOINED = [f"{row['title']} {row['text']}".strip() for row in ROWS]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=1000)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=700)
    elif kind == "lance":
        lance.write_dataset(table, str(path), max_rows_per_file=2000)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl", "lance"])
def test_every_format(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    assert read(kind, path) == DOCUMENTS
    assert read(kind, path, columns=Columns(role="query")) == TEXTS
    assert read(kind, path, columns=Columns(role="other")) == TEXTS
    assert read(kind, path, columns=Columns("text", "title")) == JOINED
    assert read(kind, path, columns=Columns("title")) == [row["title"] for row in ROWS]


def test_arrow_streams_as_datasets_writes_them(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert read("arrow", tmp_path / "saved") == DOCUMENTS


def test_plain_text(tmp_path: Path) -> None:
    content = "\ufeffa \n\n \t\nb\r\n\u2028c\rd\n\u00e9".encode()
    (tmp_path / "x.txt").write_bytes(content)
    (tmp_path / "y.TXT.gz").write_bytes(gzip.compress(content))
    as_is = ["a ", "b", "\u2028c\rd", "\u00e9"]
    assert read("txt", tmp_path, columns=Columns(role="other")) == 2 * as_is
    assert read("txt", tmp_path / "x.txt") == [text.strip() for text in as_is]
    [batch] = read_files(
        "txt", [tmp_path / "x.txt"], Columns(title="title", title_is_optional=True), refuse
    )
    assert list(batch.numbers) == [1, 4, 5, 6] and batch.unit == "line"
    with pytest.raises(ConfigError, match=r"no column 'title', only 'text'.* has no others"):
        read("txt", tmp_path, columns=Columns(title="title"))
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read("txt", tmp_path / "empty.txt") == []


def test_a_line_of_plain_text_that_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"a\ncaf\xe9\nb\n")
    bad: list[BadRow] = []
    assert read("txt", tmp_path / "x.txt", report=bad.append) == ["a", "b"]
    assert [str(row) for row in bad] == [
        f"{tmp_path}/x.txt, line 2: column 'text' is no UTF-8 text ('\\udce9' at character 3)"
    ]


def test_compressed_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    assert read("jsonl", path) == DOCUMENTS
    assert read("jsonl", tmp_path) == DOCUMENTS


def test_directories_and_globs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text(json.dumps({"text": name}) + "\n")
        (tmp_path / name / "x.txt").write_text("no")
    assert read("jsonl", tmp_path) == ["a", "b"]
    assert read("jsonl", f"{tmp_path}/*/x.jsonl", tmp_path / "b") == ["a", "b", "b"]
    assert [path.name for path in find_files([f"{tmp_path}/**/*.jsonl"], "jsonl")] == [
        "x.jsonl"
    ] * 2


def test_bad_lines_are_told_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = ['{"text": "good"}', "{broken", '{"text": null}', "[1]", '{"body": "x"}', '{"text": 7}']
    path.write_text("\n".join(lines))
    bad: list[BadRow] = []
    assert read("jsonl", path, report=bad.append) == ["good"]
    places = [row.place for row in bad]
    assert places == [f"{path}, line {n}" for n in (2, 3, 4, 5, 6)]
    reasons = " | ".join(row.reason for row in bad)
    for expected in ("broken JSON", "'text' is null", "a JSON list", "(columns: 'body')", "int 7"):
        assert expected in reasons


def test_what_is_no_utf_8_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b\\ud83d"}\n{"text": "c\xff"}\n{"text": "d"}\n')
    bad: list[BadRow] = []
    assert read("jsonl", path, report=bad.append) == ["a", "d"]
    assert [str(row) for row in bad] == [
        f"{path}, line 2: column 'text' is no UTF-8 text ('\\ud83d' at character 1)",
        f"{path}, line 3: column 'text' is no UTF-8 text ('\\udcff' at character 1)",
    ]
    path = tmp_path / "x.csv"
    path.write_bytes(b"text\na\n\xff\nb\n")
    assert read("csv", path, report=bad.append) == ["a", "b"] and len(bad) == 3


@pytest.mark.parametrize(("kind", "start"), [("jsonl", '{"text": "a"}'), ("csv", "text\na")])
def test_a_byte_order_mark(kind: str, start: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_text(start + "\n", encoding="utf-8-sig")
    assert read(kind, path) == ["a"]


def test_json_lines_without_the_column(tmp_path: Path) -> None:
    """Some rows may lack it; that none has it is a mistake in its name."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "title": "T"}\n')
    assert read("jsonl", path, columns=Columns("text", "title")) == ["a", "T b"]
    with pytest.raises(ConfigError, match="has no column 'titel', only 'text', 'title'"):
        read("jsonl", path, columns=Columns("text", "titel"))
    path.write_text('{"text": "a"}\n' * 20_000)
    given: list[str] = []
    with pytest.raises(ConfigError, match="has no column 'titel'"):
        for batch in read_files("jsonl", [str(path)], Columns("text", "titel"), refuse):
            given += batch.texts
    assert given == []


def test_nulls_in_arrow_files(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), path)
    bad: list[BadRow] = []
    assert read("parquet", path, report=bad.append) == ["a", "b"]
    assert str(bad[0]) == f"{path}, row 1: column 'text' is null, not a string"
    bad.clear()
    assert read("parquet", path, columns=Columns("n"), report=bad.append) == []
    assert len(bad) == 3 and "int 1, not a string" in bad[0].reason


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "lance"])
def test_a_column_that_is_not_there(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    message = r"has no column 'body', only 'id', 'title', 'text'.*text="
    with pytest.raises(ConfigError, match=message):
        read(kind, path, columns=Columns("body"))


def test_a_beir_folder(tmp_path: Path) -> None:
    corpus = [{"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "title": "", "text": " y"}]
    for name, rows in (("corpus", corpus), ("queries", [{"_id": "q", "text": " q?"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches = list(read_beir(str(tmp_path), refuse, ("corpus", "queries")))
    assert [(batch.texts, batch.prompt_type) for batch in batches] == [
        (["T x", "y"], "document"),
        ([" q?"], "query"),
    ]
    assert len(list(read_beir(str(tmp_path), refuse, ("queries",)))) == 1
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"there is no queries\.jsonl in it"):
        list(read_beir(str(tmp_path), refuse, ("queries",)))


def test_how_many_rows_there_are_about(tmp_path: Path) -> None:
    assert estimate_rows("parquet", [str(write(tmp_path, "parquet"))]) == 9000
    for kind in ("jsonl", "csv"):
        found = estimate_rows(kind, [str(write(tmp_path, kind))])
        assert found is not None and abs(found - 9000) < 500
    assert estimate_rows("lance", [write(tmp_path, "lance")]) == 9000
    (tmp_path / "x.txt").write_text("[a\n" * 9000)  # no JSON array
    assert estimate_rows("txt", [tmp_path / "x.txt"]) == 9000
    assert estimate_rows("jsonl", ["-"]) is None
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}'))
    (tmp_path / "x.json").write_text('[{"text": "a"}]')
    for name in ("x.jsonl.gz", "x.json"):
        assert estimate_rows("jsonl", [tmp_path / name]) is None


def test_a_table_with_a_pipe_in_it_is_not_waited_for(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"text": ["a", "b"]}), tmp_path / "x.lance")
    [file] = (tmp_path / "x.lance" / "data").iterdir()
    file.unlink()
    os.mkfifo(file)
    named = rf"x\.lance cannot be read as lance: .*{file.name} is no file"
    with pytest.raises(InputError, match=named):
        read("lance", tmp_path / "x.lance")
    with pytest.raises(InputError, match=named):
        estimate_rows("lance", [tmp_path / "x.lance"])
