"""Parts are the same texts in another process, and a divided file the same as a whole one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cloudpickle
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import ConfigError, InputError
from embcache.warm import BadRow, Columns, Dialect
from embcache.warm import parts as module
from embcache.warm.batches import BATCH_ROWS
from embcache.warm.parts import Part, parts
from embcache.warm.sources import estimate_part, estimate_rows, read_files
from tests.conftest import ROOT

COUNT = 1000
TITLED = Columns("doc.text", "doc.title")

Found = tuple[list[tuple[str, str, int]], list[BadRow]]


def table(count: int = COUNT) -> pa.Table:
    """Rows with nested columns, of which some have no text."""
    texts = [None if i % 130 == 7 else f" text {i}" for i in range(count)]
    titles = [f"T{i}" if i % 3 else None for i in range(count)]
    docs = [
        None if i % 301 == 300 else {"text": texts[i], "title": titles[i]} for i in range(count)
    ]
    return pa.table(
        {"text": texts, "doc": docs, "n": list(range(count)), "other": ["x" * 99] * count}
    )


def write(folder: Path, kind: str) -> Path:
    path = folder / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table(), path, row_group_size=64)
    else:
        dataset = lance.write_dataset(table(), str(path), max_rows_per_file=64)
        dataset.delete(
            "n % 17 = 3 or n between 200 and 300"
        )  # a fragment is gone, others have holes
    return path


def everything(read: Iterable[Part]) -> Found:
    bad: list[BadRow] = []
    batches = [batch for part in read for batch in part.read(bad.append)]
    rows = [(t, b.source, n) for b in batches for t, n in zip(b.texts, b.numbers, strict=True)]
    return rows, bad


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few row groups."""
    monkeypatch.setattr(module, "PART_BYTES", 4000)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., list[Any]]:
    """Reads parts in another process, in another working directory."""
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import pickle, sys\n"
        "read = pickle.load(sys.stdin.buffer)\n"
        "def all_of(part):\n"
        "    bad = []\n"
        "    return list(part.read(bad.append)), bad\n"
        "sys.stdout.buffer.write(pickle.dumps([all_of(part) for part in read]))\n"
    )

    def run(read: list[Part], dump: Callable[[Any], bytes] = pickle.dumps) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=dump(read),
            capture_output=True,
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return list(pickle.loads(done.stdout))

    return run


def test_parts_are_read_alike_in_another_process(
    elsewhere: Callable[..., list[Any]], small: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for kind in ("parquet", "lance"):
        write(tmp_path, kind)
    with pa.ipc.new_file("x.arrow", table().schema) as file:
        file.write_table(table())
    Path("x.jsonl").write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
    Path("x.csv").write_text("1;a\n2\n3;c\n")
    Path("x.txt").write_text("a\n\nb\n")
    found = parts("parquet", ["x.parquet"], TITLED, split=True)
    found += parts("lance", ["x.lance"], TITLED, split=True)
    assert len(found) > 10
    for kind in ("parquet", "lance", "arrow", "jsonl", "txt"):
        found += parts(kind, [f"x.{kind}"], Columns())
    found += parts("csv", ["x.csv"], Columns("2"), Dialect(";"))
    found.append(
        Part("txt", found[-2].path, Columns(role="query"), prompt="p: ", prompt_type="query")
    )

    def here(part: Part) -> Any:
        bad: list[BadRow] = []
        return list(part.read(bad.append)), bad

    expected = [here(part) for part in found]
    assert elsewhere(found) == expected
    assert elsewhere(found, cloudpickle.dumps) == expected
    assert all(batch.source in {str(part.path) for part in found} for batch in expected[0][0])
    assert expected[0][0][0].source == "x.parquet" and expected[-1][0][0].prompt == "p: "
    assert str(expected[-2][1][0]).startswith("x.csv, line 2: 1 fields")


@pytest.mark.parametrize("kind", ["parquet", "lance"])
@pytest.mark.parametrize("columns", [Columns(), TITLED, Columns("doc.text"), Columns("n")], ids=str)
def test_divided_and_whole_are_the_same(
    kind: str, columns: Columns, small: None, tmp_path: Path
) -> None:
    path = write(tmp_path, kind)
    whole, divided = parts(kind, [path], columns), parts(kind, [path], columns, split=True)
    assert len(whole) == 1 and len(divided) > 2
    texts, bad = everything(whole)
    assert everything(divided) == (texts, bad) and bad
    alone = [everything([part]) for part in reversed(divided)]  # each by itself, in any order
    assert [row for rows, _ in reversed(alone) for row in rows] == texts
    known = [estimate_part(part) for part in divided]
    assert sum(map(int, known)) == estimate_part(whole[0]) == len(texts) + len(bad)


def test_row_numbers_of_a_table_are_those_of_its_rows_that_are_left(
    small: None, tmp_path: Path
) -> None:
    path = write(tmp_path, "lance")
    rows, bad = everything(parts("lance", [path], Columns(), split=True))
    left = lance.dataset(str(path)).to_table(columns=["text"])["text"].to_pylist()
    assert {number: text for text, _, number in rows} == {
        i: text.strip() for i, text in enumerate(left) if text is not None
    }
    assert len(bad) == left.count(None) > 0


def test_about_so_many_bytes_of_the_wanted_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(tmp_path, "parquet")
    monkeypatch.setattr(module, "PART_BYTES", 10_000)
    few = parts("parquet", [path], Columns("n"), split=True)
    more = parts("parquet", [path], TITLED, split=True)
    assert 1 < len(few) < len(more) < pq.ParquetFile(path).num_row_groups
    monkeypatch.setattr(module, "PART_BYTES", 1)
    each = parts("parquet", [path], Columns(), split=True)
    assert [part.pieces for part in each] == [range(i, i + 1) for i in range(16)]
    monkeypatch.undo()
    [one] = parts("parquet", [path], Columns(), split=True)
    assert one.pieces is None


def test_what_has_no_pieces_stays_whole(small: None, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\n" * 9999)
    [part] = parts("txt", [tmp_path / "x.txt"], Columns(), split=True)
    assert part.pieces is None and part.can_be_shipped and not part.is_remote
    pq.write_table(table(0), tmp_path / "none.parquet")
    lance.write_dataset(table(0), str(tmp_path / "none.lance"))
    for kind in ("parquet", "lance"):
        [part] = parts(kind, [tmp_path / f"none.{kind}"], Columns(), split=True)
        assert everything([part]) == ([], []) and estimate_part(part) == 0


def test_pipes_stay_here(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for part in parts("jsonl", ["-", tmp_path / "pipe"], Columns(), split=True):
        assert not part.can_be_shipped and not part.is_remote and part.pieces is None


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_file_without_the_column_is_said_when_it_is_divided(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"x\.{kind} has no column 'body', only 'text'"):
        parts(kind, [write(tmp_path, kind)], Columns("body"), split=True)


def test_a_parquet_file_that_was_written_anew(small: None, tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    *_, last = parts("parquet", [path], Columns(), split=True)
    pq.write_table(table(10), path)
    with pytest.raises(InputError, match=r"has 1 row groups, and .* was written anew"):
        everything([last])


def test_parts_of_a_table_are_of_the_version_that_was_divided(small: None, tmp_path: Path) -> None:
    path = write(tmp_path, "lance")
    divided = parts("lance", [path], Columns(), split=True)
    before = everything(divided)
    lance.dataset(str(path)).delete("n < 500")
    lance.dataset(str(path)).optimize.compact_files()
    lance.write_dataset(table(), str(path), mode="append")
    assert everything(divided) == before != everything(parts("lance", [path], Columns()))


def test_a_damaged_file_is_named(small: None, tmp_path: Path) -> None:
    parquet, table_ = write(tmp_path, "parquet"), write(tmp_path, "lance")
    parquet.write_bytes(parquet.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as parquet"):
        parts("parquet", [parquet], Columns(), split=True)
    divided = parts("lance", [table_], Columns(), split=True)
    for file in (table_ / "data").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"x\.lance cannot be read as lance"):
        everything(divided)


def test_batches_of_a_table_are_bounded(tmp_path: Path) -> None:
    texts = [f"{i} " + "x" * 100_000 for i in range(200)]
    lance.write_dataset(pa.table({"text": texts}), str(tmp_path / "long.lance"))
    lance.write_dataset(pa.table({"text": [""] * 20_000}), str(tmp_path / "short.lance"))
    batches = list(read_files("lance", [tmp_path], Columns(), lambda row: None))
    assert sum(len(batch.texts) for batch in batches) == 20_200
    sizes = [(len(batch.texts), sum(map(len, batch.texts))) for batch in batches]
    assert all(count <= BATCH_ROWS and size <= 2**22 for count, size in sizes)
    assert estimate_rows("lance", [tmp_path]) == 20_200
