"""What `warm` reads from files is what `mteb.evaluate` asks for afterwards."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lance
import mteb
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from typer.testing import Result

from embcache import ConfigError, EmbcacheError, InputError, VllmEncoderWrapper
from embcache.store import Database
from tests.fakes import FakeEngine
from tests.object_store import BUCKET, ObjectStore, Remote

pytestmark = pytest.mark.filterwarnings("ignore")

Run = Callable[..., Result]

AROUND = [
    ("", ""),
    (" ", ""),
    ("", "\n"),
    ("\t", " \u00a0"),
    ("a\r\nb ", "\r\n"),
    ('"no", ', " ;|"),
]
TEXTS = [f"{before}text {i}{after}" for i, (before, after) in enumerate(17 * AROUND)]
TITLES = [("", " ", f"T{i} ", None)[i % 4] for i in range(len(TEXTS))]
PROMPTS = {"query": "q: ", "document": "d: "}


def metadata(name: str, kind: Any, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Texts with blanks around them.",
        dataset={"path": "none", "revision": "1"},
        type=kind,
        category="t2t" if kind == "Retrieval" else "t2c",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )


class Documents(AbsTaskRetrieval):
    """All texts are documents, and queries."""

    metadata = metadata("BlankDocuments", "Retrieval", "ndcg_at_10")
    k_values: ClassVar[Any] = (1, 10)

    def __init__(self, titles: bool, instructions: bool = False) -> None:
        super().__init__()
        ids = [str(i) for i in range(len(TEXTS))]
        corpus = {"id": ids, "text": TEXTS}
        if titles:  # mteb itself fails on null
            corpus["title"] = [title or "" for title in TITLES]
        queries = {"id": ids, "text": TEXTS}
        if instructions:
            queries["instruction"] = [f" how {i}\n" for i in ids]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_dict(corpus),
                    "queries": Dataset.from_dict(queries),
                    "relevant_docs": {i: {i: 1} for i in ids},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class Kinds(AbsTaskClassification):
    """All texts are to be classified."""

    metadata = metadata("BlankKinds", "Classification", "accuracy")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rows = Dataset.from_dict({"text": TEXTS, "label": [i % 2 for i in range(len(TEXTS))]})
        self.dataset = DatasetDict({"train": rows, "test": rows})
        self.data_loaded = True


@pytest.fixture
def run(run_warm: Run) -> Run:
    return run_warm


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[], list[str]]:
    """The texts in the cache."""

    def read() -> list[str]:
        [space] = Database(tmp_path / "cache", writable=False).spaces()
        return [t for batch in space.open().scan(["text"]) for t in batch["text"].to_pylist()]

    return read


def write(folder: Path, kind: str) -> Path:
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS, "title": TITLES})
    frame["how"] = [f" how {i}\n" for i in range(len(TEXTS))]
    path = folder / f"x.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "json":
        frame.to_json(path, orient="records", indent=1)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "lance":
        lance.write_dataset(pa.Table.from_pandas(frame), str(path))
    else:
        table = pa.Table.from_pandas(frame)
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    return path


KINDS = ("csv", "tsv", "jsonl", "json", "parquet", "arrow", "lance")


def source(folder: Path, kind: str) -> tuple[Any, ...]:
    quoted = ("--quotes",) if kind == "tsv" else ()
    return (f"--{'jsonl' if kind == 'json' else kind}", write(folder, kind), *quoted)


def evaluate(model: Path, cache: Path, task: Any, prompts: Any = None) -> VllmEncoderWrapper:
    encoder = VllmEncoderWrapper(
        str(model), dtype="float32", cache_path=cache, on_miss="raise", prompt_dict=prompts
    )
    mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    assert encoder.total.texts > 0 and encoder.total.encoded == 0
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("titles", [False, True], ids=["no titles", "titles"])
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompts", "prompts"])
def test_documents_and_queries(
    kind: str, titles: bool, prompts: Any, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    files = source(tmp_path, kind)
    given = () if prompts is None else ("--prompt-dict", json.dumps(prompts))
    documents = ("--prompt-type", "document") if prompts else ()  # it is what files are taken for
    run(*files, *given, *documents, *(("--title-column", "title") if titles else ()))
    run(*files, *given, "--prompt-type", "query")
    evaluate(tiny_model, tmp_path / "cache", Documents(titles), prompts)


def test_queries_with_instructions(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    files = source(tmp_path, "parquet")
    run(*files)
    run(*files, "--prompt-type", "query", "--instruction-column", "how")
    evaluate(tiny_model, tmp_path / "cache", Documents(False, instructions=True))


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts(kind: str, run: Run, tiny_model: Path, tmp_path: Path) -> None:
    run(*source(tmp_path, kind), "--prompt-type", "none")
    evaluate(tiny_model, tmp_path / "cache", Kinds())


def test_data_sets_and_beir_folders(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, "parquet")
    run("--dataset", folder)
    run("--dataset", folder, "--prompt-type", "query")
    evaluate(tiny_model, tmp_path / "cache", Documents(False))
    beir = tmp_path / "beir"
    beir.mkdir()
    for name in ("corpus", "queries"):
        (write(beir, "jsonl")).rename(beir / f"{name}.jsonl")
    run("--beir", beir)
    evaluate(tiny_model, tmp_path / "cache", Documents(True))


def test_titles_of_queries(run: Run, tmp_path: Path) -> None:
    for kind in ("query", "none"):
        with pytest.raises(ConfigError, match="column 'title' of titles"):
            run(*source(tmp_path, "csv"), "--title-column", "title", "--prompt-type", kind)


def test_ms_marco(run: Run, cached: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_text('0\tThe "presence\n1\tB\n2\tC\n')
    run("--tsv", tmp_path / "collection.tsv", "--text-column", 2)
    (tmp_path / "part.tsv").write_text("2\tD\n3\tE\n")
    with pytest.raises(ConfigError, match="the first line has a field '2'"):
        run("--tsv", tmp_path / "part.tsv", "--text-column", 2)
    run("--tsv", tmp_path / "part.tsv", "--text-column", 2, "--no-header")
    (tmp_path / "x.csv").write_text("1^F\n")
    run("--csv", tmp_path / "x.csv", "--text-column", 2, "--delimiter", "^")
    (tmp_path / "y.csv").write_text('text\tid\n"G\t1\n')
    run("--csv", tmp_path / "y.csv", "--delimiter", r"\t", "--no-quotes")
    assert cached() == ['The "presence', "B", "C", "D", "E", "F", '"G']


def test_standard_input_beside_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    lines = ("--jsonl", tmp_path / "a.jsonl", "--jsonl", "-", "--json")
    found = json.loads(run(*lines, input='{"text": "b"}\n').stdout)
    assert found["encoded"] == 2
    with pytest.raises(ConfigError, match="- is named as jsonl and as csv, and standard input"):
        run("--jsonl", "-", "--csv", "-", input="")


def test_a_space_and_plain_text(run: Run, cached: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\n\nb\n")
    assert json.loads(run("--txt", tmp_path / "x.txt", "--json").stdout)["encoded"] == 2
    (tmp_path / "cache").rename(tmp_path / "other")
    found = json.loads(run("--lance", tmp_path / "other", "--prompt", "p: ", "--json").stdout)
    assert found["encoded"] == 2 and sorted(cached()) == ["a", "b"]


def test_files_in_a_store(
    run: Run, cached: Callable[[], list[str]], remote: Remote, object_store: ObjectStore,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    folder = remote.url.removeprefix(f"s3://{BUCKET}/")
    for kind in ("parquet", "csv"):
        obstore.put(object_store.client(), f"{folder}/x.{kind}", write(tmp_path, kind))
    found = json.loads(
        run("--parquet", remote.url, "--csv", f"{remote.url}/*.csv", "--json").stdout
    )
    assert found["texts"] == 2 * len(TEXTS) and sorted(cached()) == sorted(
        {t.strip() for t in TEXTS}
    )
    [space] = Database(tmp_path / "cache", writable=False).spaces()
    sources = {s for batch in space.open().scan(["task"]) for s in batch["task"].to_pylist()}
    assert sources == {f"{remote.url}/x.parquet"}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_pipe_is_read_once(dry: tuple[str, ...], run: Run) -> None:
    out, into = os.pipe()

    def feed() -> None:
        with open(into, "w") as file:
            file.writelines(f'{{"text": "{i}"}}\n' for i in range(20_000))

    threading.Thread(target=feed, daemon=True).start()
    found = json.loads(run("--jsonl", f"/dev/fd/{out}", "--json", *dry).stdout)
    os.close(out)
    assert found["texts"] == 20_000


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.parquet", b"PAR1 and no more"),
        ("x.parquet", b""),
        ("x.arrow", b"ARROW1\0\0 and no more"),
        ("x.jsonl.gz", b""),
        ("x.csv", "text\na\n".encode("utf-16")),
        ("x.jsonl", b'[{"text": "a"}, {"text"'),
    ],
)
def test_damage_is_one_clear_error(
    name: str, content: bytes, dry: tuple[str, ...], run: Run, tmp_path: Path,
    fake_engines: list[FakeEngine],
) -> None:  # fmt: skip
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / name).write_bytes(content)
    kind = name.split(".")[1]
    with pytest.raises(InputError, match=name):
        run(f"--{kind}", tmp_path / name, *dry)
    # what the first or last bytes tell is said before the engine starts for another file
    if not dry and "[{" not in str(content):
        with pytest.raises(InputError, match=name):
            run("--jsonl", tmp_path / "good.jsonl", f"--{kind}", tmp_path / name)
        assert not any(engine.starts for engine in fake_engines)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_later_file_without_the_column_is_said_before_the_engine_starts(
    kind: str, run: Run, tmp_path: Path, fake_engines: list[FakeEngine]
) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    table = pa.table({"body": ["b"]})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
        file.write_table(table)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=rf"x\.{kind} has no column 'text', only 'body'"):
        run("--jsonl", tmp_path / "good.jsonl", f"--{kind}", tmp_path / f"x.{kind}")
    assert not any(engine.starts for engine in fake_engines)


def test_a_broken_data_set(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, texts in (("a", ["x"]), ("b", [[1]])):
        pd.DataFrame({"text": texts}).to_parquet(tmp_path / "set" / f"{name}.parquet")
    with pytest.raises(EmbcacheError, match="cannot be read on from row 1"):
        run("--dataset", tmp_path / "set")


def test_what_a_folder_holds_besides_is_said_once(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.jsonl", "b.JSON", "._c.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    (folder / "d.csv").write_text("text\nd\n")
    found = json.loads(run("--jsonl", folder, "--json").stdout)
    assert found["texts"] == 2
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder}: 2 of its files read as jsonl; not read: d.csv"
    ]


def test_sources_without_any_text_are_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    (tmp_path / "x.csv").write_text("id,text\n")
    result = run("--jsonl", tmp_path / "x.jsonl", "--csv", tmp_path / "x.csv")
    assert "there are no texts: the sources are empty" in result.stderr
