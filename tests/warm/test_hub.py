"""Hugging Face data sets, here from folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import SplitInfo

from embcache import ConfigError, InputError
from embcache.warm import BadRow, Columns
from embcache.warm.hub import estimate_dataset, read_dataset
from tests.warm.reading import refuse


def read(folder: Path, columns: Columns | None = None, report: Any = refuse) -> list[str]:
    stream = read_dataset(str(folder), None, "train", columns or Columns(), report)
    return [text for batch in stream for text in batch.texts]


def lines(path: Path, *texts: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_a_dataset_streamed_from_a_folder(tmp_path: Path) -> None:
    texts = [f" text {i} " for i in range(9000)]
    image = pa.array([{"path": "no such image"}] * len(texts))
    pq.write_table(pa.table({"text": texts, "image": image}), tmp_path / "x.parquet")
    assert read(tmp_path) == [text.strip() for text in texts]
    assert read(tmp_path, Columns(role="query")) == texts
    [first, *_] = read_dataset(str(tmp_path), None, "train", Columns(), refuse)
    assert first.place(7) == f"{tmp_path}, row 7"


def test_nested_columns_and_bytes(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "a", "title": b"T"}}, {"doc": None}, {"doc": {"text": "b"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    bad: list[BadRow] = []
    assert read(tmp_path, Columns("doc.text", "doc.title"), bad.append) == ["T a", "b"]
    assert [str(row) for row in bad] == [
        f"{tmp_path}, row 1: column 'doc.text' is null, not a string"
    ]


def test_a_split_or_a_column_that_is_not_there(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a")
    with pytest.raises(ConfigError, match=r"cannot be opened \(configuration None, split no\)"):
        list(read_dataset(str(tmp_path), None, "no", Columns(), refuse))
    with pytest.raises(ConfigError, match="has no column 'body', only 'text'"):
        read(tmp_path, Columns("body"), lambda row: None)


def test_mixed_types_in_a_file(tmp_path: Path) -> None:
    """Newer datasets hand such rows on, older ones fail."""
    lines(tmp_path / "a.jsonl", "a", 1, "b")
    bad: list[BadRow] = []
    try:
        assert read(tmp_path, report=bad.append) == ["a", "b"]
        said = str(bad[0])
    except InputError as error:
        said = str(error)
    assert re.search(r"row 1: column 'text' is int 1|cannot be read on from row 0: ", said)


def test_a_text_that_is_no_string(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [["a"], None, []]}), tmp_path / "x.parquet")
    bad: list[BadRow] = []
    assert read(tmp_path, report=bad.append) == []
    assert str(bad[0]) == f"{tmp_path}, row 0: column 'text' is list ['a'], not a string"


def test_mixed_types_between_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [[1, 2]]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"split train, cannot be read on from row 1: .*another"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["b.parquet", "a.parquet"])
def test_a_broken_file(name: str, tmp_path: Path) -> None:
    for each in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / each)
    (tmp_path / name).write_bytes(b"PAR1 and then nothing of it")
    with pytest.raises((InputError, ConfigError), match=r"Data set .*(cannot be (read|opened))"):
        read(tmp_path)


def test_broken_json_in_a_later_file(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{broken\n')
    with pytest.raises(InputError, match="cannot be read on from row 1"):
        read(tmp_path)


def test_what_stops_reading_is_not_the_data_set_s_fault(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", 1)

    def stop(row: BadRow) -> None:
        raise InputError("stop")

    with pytest.raises(InputError, match=r"^stop$"):
        read(tmp_path, report=stop)


def test_estimate_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        class info:
            splits: ClassVar[Any] = {"train": SplitInfo(name="train", num_examples=7)}

    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, config: Builder)
    assert estimate_dataset("organization/name", None, "train") == 7
    assert estimate_dataset("organization/name", None, "test") is None
    Builder.info.splits = None
    assert estimate_dataset("organization/name", None, "train") is None


def test_estimate_of_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    assert estimate_dataset(str(tmp_path / "nothing"), None, "train") is None
