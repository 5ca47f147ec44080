"""What is held at a time is bounded in bytes, however long texts are; see `make bench-memory`."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import VllmEncoderWrapper
from embcache.pipeline.request import TextRequest
from embcache.warm import Columns, TextBatch, Warmer, plan
from embcache.warm.batches import BATCH_BYTES
from embcache.warm.sources import read_files
from tests.fakes import FakeEngine

Make = Callable[..., VllmEncoderWrapper]
LONG = 60_000
COUNT = 1500  # 90 MB
MOST = 80_000_000


class Forgetting(list[Any]):
    """What an engine has embedded, which the fake one keeps, and no real one."""

    def append(self, _: Any) -> None:
        """Keep nothing."""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeEngine.__init__

    def init(self: FakeEngine, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.chunks = Forgetting()

    monkeypatch.setattr(FakeEngine, "__init__", init)


def document(number: int, size: int = LONG) -> str:
    return f"{number} " + "x" * size  # two words: the fake engine splits them


def write(path: Path, kind: str, texts: Iterator[str]) -> None:
    schema = pa.schema([("text", pa.string())])
    if kind == "jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text"])
            rows.writerows([text] for text in texts)
    elif kind == "txt":
        with path.open("w") as file:
            file.writelines(f"{text}\n" for text in texts)
    elif kind == "lance":
        lance.write_dataset(pa.table({"text": list(texts)}, schema), str(path))
    elif kind == "arrow":
        with pa.ipc.new_file(path, schema) as arrow:  # in one batch of all rows
            arrow.write_batch(pa.record_batch([pa.array(list(texts))], schema))
    else:
        pq.write_table(pa.table({"text": list(texts)}, schema), path)


def peak(work: Callable[[], Any]) -> int:
    """Bytes that Python has at most more than at the beginning."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "arrow", "parquet", "lance"])
def test_long_documents_of_every_format(make_encoder: Make, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    write(path, kind, (document(i) for i in range(COUNT)))

    def batches() -> Iterator[TextBatch]:
        for batch in read_files(kind, [path], Columns(), lambda row: None):
            assert len(batch.texts) <= 1 + BATCH_BYTES // LONG
            yield batch

    for _ in ("cold", "warm"):
        warmer = Warmer(make_encoder(prompt_dict={"document": "passage: "}))
        assert peak(lambda warmer=warmer: warmer.run(batches())) < MOST
        assert warmer.stats.texts == COUNT
    encoder = make_encoder(cache_path=tmp_path / "another cache")
    found: list[Any] = []
    assert peak(lambda: found.append(plan(Warmer(encoder), encoder, batches()))) < MOST
    assert found[0].missing == COUNT


@pytest.mark.parametrize(
    "sizes",
    [
        [10_000_000 if i % 400 == 200 else 200 for i in range(4000)],  # a few as long as a book
        [*[200] * 3000, *[LONG] * 1500],  # first short ones, then long ones
        [50_000_000, 5, 50_000_000],
    ],
    ids=["books", "a jump", "giants"],
)
def test_texts_of_very_different_lengths(make_encoder: Make, sizes: list[int]) -> None:
    def batches() -> Iterator[TextBatch]:
        for i, size in enumerate(sizes):
            yield TextBatch([document(i, size)], "x")

    warmer = Warmer(make_encoder())
    most = max(MOST, 6 * max(sizes))  # what a text takes, it takes
    assert peak(lambda: warmer.run(batches())) < most
    assert warmer.stats.encoded == len(sizes)


def test_few_texts_of_many_bytes_a_character(make_encoder: Make) -> None:
    """An emoji makes four bytes of each character of its text in memory."""

    def batches() -> Iterator[TextBatch]:
        for i in range(600):
            yield TextBatch([document(i) + "\N{ROCKET}"], "x")  # 240 kB each

    warmer = Warmer(make_encoder(), report=print)
    assert peak(lambda: warmer.run(batches())) < 1.5 * MOST  # and their UTF-8
    assert warmer.stats.encoded == 600


def test_rows_that_repeat_few_texts(tmp_path: Path) -> None:
    """A dictionary's bytes say nothing about the rows': here they are 30,000 times 60 kB."""
    texts = pa.array([document(i) for i in range(4)])
    column = pa.DictionaryArray.from_arrays(pa.array(np.arange(30_000) % 4, pa.int32()), texts)
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    with pa.ipc.new_stream(tmp_path / "x.arrow", pa.schema([("text", column.type)])) as file:
        file.write_batch(pa.record_batch([column], ["text"]))
    for kind in ("parquet", "arrow"):
        rows = 0

        def read(kind: str = kind) -> None:
            nonlocal rows
            files = [tmp_path / f"x.{kind}"]
            for batch in read_files(kind, files, Columns(), lambda row: None):
                assert len(batch.texts) <= 1 + BATCH_BYTES // LONG
                assert batch.texts[1][:2] == f"{(rows + 1) % 4} "
                rows += len(batch.texts)

        assert peak(read) < MOST
        assert rows == 30_000


def test_encoding_long_documents(make_encoder: Make) -> None:
    """Beyond the texts themselves, which the caller has: of the prompt in front of them, say."""
    texts = [document(i) for i in range(COUNT)]
    pipeline = make_encoder().open_pipeline()
    asked = TextRequest(texts=texts, prompt="passage: ", show_progress=False)
    found: list[Any] = []
    assert peak(lambda: found.append(pipeline.encode(asked)[1])) < MOST
    assert found[0].encoded == COUNT
