from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache.errors import ConfigError
from embcache.warm import Columns
from embcache.warm import parts as module
from embcache.warm.batches import BadRow
from embcache.warm.parts import Part, Selected, parts
from embcache.warm.streams import Shard

TEXTS = [f"text {i}" for i in range(20)]


def texts_of(part: Part | Selected, bad: list[BadRow] | None = None) -> list[str]:
    report = (lambda row: None) if bad is None else bad.append
    return [text for batch in part.read(report) for text in batch.texts]


@pytest.fixture
def lines(tmp_path: Path) -> Part:
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": text} for text in TEXTS]
    rows.insert(5, {"body": "none"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [part] = parts("jsonl", [path], Columns("text"))
    return replace(part, prompt="p: ", prompt_type="query")


def test_selected_texts_of_a_part(lines: Part) -> None:
    assert texts_of(Selected(lines, Shard())) == TEXTS
    assert texts_of(Selected(lines, Shard(2, 3))) == TEXTS[1::3]
    assert texts_of(Selected(lines, Shard(), limit=7)) == TEXTS[:7]
    assert texts_of(Selected(lines, Shard(1, 4), limit=7)) == TEXTS[:7:4]
    shards = [texts_of(Selected(lines, Shard(number, 6))) for number in range(1, 7)]
    assert sorted(text for shard in shards for text in shard) == sorted(TEXTS)


def test_each_file_is_counted_by_itself(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{i}" for i in range(5)))
    both = parts("txt", [tmp_path / "a.txt", tmp_path / "b.txt"], Columns("text"))
    chosen = [texts_of(Selected(part, Shard(2, 2), limit=4)) for part in both]
    assert chosen == [["a1", "a3"], ["b1", "b3"]]


def test_numbers_and_bad_rows_stay(lines: Part) -> None:
    bad: list[BadRow] = []
    [batch] = Selected(lines, Shard(2, 2)).read(bad.append)
    assert (batch.prompt, batch.prompt_type, batch.texts[2]) == ("p: ", "query", "text 5")
    assert batch.place(2).endswith("corpus.jsonl, line 7")
    assert [row.place for row in bad] == [f"{lines.path}, line 6"]


def test_what_is_pickled_reads_the_same(
    lines: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Selected(lines, Shard(1, 2), limit=9)
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(pickle.dumps(chosen))
    assert copy == chosen and texts_of(copy) == TEXTS[:9:2]
    assert not copy.is_remote


def test_pieces_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS[:13], None, *TEXTS[13:]]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=4)
    [whole] = parts("parquet", [tmp_path / "x.parquet"], Columns("text"), split=True)
    assert whole.pieces is None  # it is small
    monkeypatch.setattr(module, "PART_BYTES", 1)
    divided = parts("parquet", [tmp_path / "x.parquet"], Columns("text"), split=True)
    assert len(divided) > 1 and len({part.pieces for part in divided}) == len(divided)
    bad: list[BadRow] = []
    assert [text for part in divided for text in texts_of(part, bad)] == TEXTS
    assert [row.place for row in bad] == [f"{tmp_path}/x.parquet, row 13"]
    assert all(part.split() == [part] for part in divided)
    with pytest.raises(ConfigError, match="has no column 'body'"):
        parts("parquet", [tmp_path / "x.parquet"], Columns("body"), split=True)


def test_standard_input_stays_here() -> None:
    [part] = parts("jsonl", ["-"], Columns("text"))
    assert not part.can_be_shipped and part.split() == [part]
