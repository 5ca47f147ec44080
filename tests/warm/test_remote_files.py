"""Files in a real object store are found and read as those of a folder are."""

from __future__ import annotations

import gzip
import io
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import ConfigError, EmbcacheError, InputError
from embcache.warm import BadRow, Columns
from embcache.warm import parts as module
from embcache.warm.files import find_files
from embcache.warm.parts import parts
from embcache.warm.sources import estimate_part, estimate_rows, read_beir, read_files
from tests.object_store import BUCKET, ObjectStore, Remote
from tests.slow_host import closing_host, silent_host
from tests.warm.reading import places, read

LINE = b'{"text": "a"}\n'
ROWS = pa.table({"text": [f"text {i}" for i in range(5000)], "v": [[0.5] * 4] * 5000})
SECONDS = 15  # "about ten", on a busy machine

Put = Callable[..., None]


@pytest.fixture
def url(remote: Remote, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in the store, which the environment says how to reach."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return remote.url


@pytest.fixture
def put(url: str, object_store: ObjectStore) -> Put:
    """Writes files below the folder."""
    above = url.removeprefix(f"s3://{BUCKET}/")

    def write(*names: str, data: bytes = LINE) -> None:
        for name in names:
            obstore.put(object_store.client(), f"{above}/{name}", data)

    return write


def parquet(table: pa.Table, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **kwargs)
    return file.getvalue()


def arrow(table: pa.Table, *, stream: bool) -> bytes:
    file = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=900)
    return file.getvalue()


def found(url: str, kind: str, pattern: str = "") -> list[str]:
    return [str(file).removeprefix(f"{url}/") for file in find_files([f"{url}{pattern}"], kind)]


def test_a_folder(url: str, put: Put, caplog: pytest.LogCaptureFixture) -> None:
    read_ = ["a.jsonl", "b.JSON", "sub/c.ndjson.gz", "year=2024/d.jsonl"]
    put(*read_)
    put("._e.jsonl", ".git/f.jsonl", "_SUCCESS")
    for pattern in ("", "/"):
        assert found(url, "jsonl", pattern) == read_ and not caplog.records
    put("_tmp/0/g.jsonl", "_h.jsonl", "sub/i.csv", "dataset_info.json")
    with caplog.at_level(logging.WARNING):
        assert found(url, "jsonl") == read_
    assert [record.getMessage() for record in caplog.records] == [
        f"{url}: 4 of its files read as jsonl; not read: _h.jsonl, _tmp, dataset_info.json, "
        "sub/i.csv"
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("/[!a].jsonl", ["b.jsonl"]),
        ("/sub*/*.jsonl", ["sub/c.jsonl"]),
        ("/**/*.jsonl", ["a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/s*", ["sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/**", ["a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/*/deep/d.jsonl", ["sub/deep/d.jsonl"]),
        ("/_*.jsonl", ["_e.jsonl"]),
        ("/part-?", ["part-1"]),
    ],
)
def test_globs_as_on_a_disk(
    pattern: str, expected: list[str], url: str, put: Put, tmp_path: Path
) -> None:
    names = ["a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl", "_e.jsonl", ".f.jsonl"]
    names += ["part-1"] if "part" in pattern else []
    put(*names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    assert found(url, "jsonl", pattern) == expected
    here = find_files([f"{tmp_path}{pattern}"], "jsonl")
    assert sorted(str(path.relative_to(tmp_path)) for path in here) == sorted(expected)


def test_names_are_as_stores_list_them(url: str, put: Put) -> None:
    names = ["a b.txt", "data[1].txt", "50%.txt", "50%25.txt", "é?.txt", "c#.txt"]
    for name in names:
        put(name, data=name.encode())
        assert read("txt", f"{url}/{name}") == [name]
    names.append("looks?like=a query.txt")  # which is refused where it is typed
    put(names[-1], data=names[-1].encode())
    assert sorted(read("txt", url)) == sorted(names)


def test_every_format(url: str, put: Put, tmp_path: Path) -> None:
    texts = ROWS["text"].to_pylist()
    put("x.parquet", data=parquet(ROWS, row_group_size=700))
    put("file/x.arrow", data=arrow(ROWS, stream=False))
    put("stream/x.arrow", data=arrow(ROWS, stream=True))
    for kind, line in (("jsonl", '{{"text": "{}"}}\n'), ("csv", "{}\n"), ("txt", "{}\n")):
        lines = ("text\n" * (kind == "csv") + "".join(map(line.format, texts))).encode()
        put(f"{kind}/x.{kind}", data=lines)
        put(f"{kind}/y.{kind}.gz", data=gzip.compress(lines))
        put(f"{kind}/z.{kind}.zst", data=pa.compress(lines, "zstd", asbytes=True))
        assert read(kind, f"{url}/{kind}") == 3 * texts
        rows = estimate_rows(kind, [f"{url}/{kind}/x.{kind}"])
        assert rows is not None and abs(rows - 5000) < 300
    lance.write_dataset(ROWS, f"{url}/tables/x y.lance", max_rows_per_file=900)
    for kind, pattern in (
        ("parquet", "x.parquet"),
        ("arrow", "file"),
        ("arrow", "stream/*"),
        ("lance", "tables"),
        ("lance", "tables/x y.lance"),
    ):
        assert read(kind, f"{url}/{pattern}") == texts
        with pytest.raises(ConfigError, match="has no column 'body', only 'text', 'v'"):
            read(kind, f"{url}/{pattern}", columns=Columns("body"))
    assert estimate_rows("parquet", [url]) == estimate_rows("lance", [url]) == 5000


def test_a_table_among_files_is_one_of_them(
    url: str, put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    put("a.jsonl", "b.lance")
    lance.write_dataset(ROWS, f"{url}/t.lance")
    assert found(url, "lance") == found(url, "lance", "/**") == ["t.lance"]
    assert found(url, "jsonl") == ["a.jsonl"]
    assert caplog.records[-1].getMessage().endswith("not read: b.lance, t.lance")


def test_rows_that_are_left_out_are_named(url: str, put: Put) -> None:
    put("x.jsonl", data=LINE + b"broken\n" + LINE)
    texts, bad = places("jsonl", f"{url}/x.jsonl")
    assert list(texts) == ["line 1", "line 3"] and bad[0].startswith("line 2: broken JSON")


def test_a_beir_folder(url: str, put: Put) -> None:
    put("corpus.jsonl")
    with pytest.raises(ConfigError, match=r"there is no queries\.jsonl in it"):
        list(read_beir(url, print, ("corpus", "queries")))
    put("queries.jsonl.gz", data=gzip.compress(LINE))
    batches = list(read_beir(url, print, ("corpus", "queries")))
    assert [batch.prompt_type for batch in batches] == ["document", "query"]


def test_parts(
    url: str, put: Put, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("x.parquet", data=parquet(ROWS, row_group_size=700))
    lance.write_dataset(ROWS, f"{url}/x.lance", max_rows_per_file=900)
    monkeypatch.setattr(module, "PART_BYTES", 20_000)
    for kind in ("parquet", "lance"):
        divided = parts(kind, [url], Columns(), split=True)
        assert len(divided) > 2 and all(part.is_remote and part.can_be_shipped for part in divided)
        sent = pickle.dumps(divided)
        assert object_store.secret.encode() not in sent and object_store.key.encode() not in sent
        batches = [batch for part in pickle.loads(sent) for batch in part.read(print)]
        assert [text for batch in batches for text in batch.texts] == ROWS["text"].to_pylist()
        assert [n for batch in batches for n in batch.numbers] == list(range(5000))
        assert batches[0].place(0) == f"{url}/x.{kind}, row 0"
        assert sum(estimate_part(part) or 0 for part in divided) == 5000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://host/x.jsonl", "are not read from http:// or https://"),
        ("https://user:secret@host/x", "are not read from http:// or https://"),
        ("ftp://host/x", r"is a URL of ftp:, .* from s3://, gs://, az://, abfss://\.$"),
        ("hf://datasets/x", "hub goes by its name"),
        ("s3:/bucket/x", "has lost a slash"),
        ("s3://key:secret@bucket/x", r"give s3://bucket/path, without user"),
        ("s3://bucket/x?secret=secret", r"give s3://bucket/path, without user"),
        ("s3://bucket//x", r"give s3://bucket/path, without .* empty parts"),
        ("s3://", r"give s3://bucket/path"),
        ("az://container/x", "which account.*AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_what_is_no_url_of_a_store(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        find_files([source], "jsonl")
    assert "secret=" not in str(caught.value) and ":secret" not in str(caught.value)


def refused(*sources: str) -> str:
    """What is said of sources, within seconds and without secrets; all of them alike."""
    said = set()
    for source in sources:
        kind = "lance" if source.endswith(".lance") else "jsonl"
        start = time.monotonic()
        with pytest.raises(EmbcacheError, match=r"^s3://\S+ cannot be read: ") as caught:
            list(read_files(kind, [source], Columns(), print))
        assert time.monotonic() - start < SECONDS
        assert isinstance(caught.value, InputError) and caught.value.__cause__ is None
        said.add(str(caught.value).removeprefix(source))
    [one] = said
    return one


def test_what_a_store_refuses(url: str, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("x.jsonl")
    lance.write_dataset(ROWS, f"{url}/x.lance")
    bucket = "there is no such bucket: mend the URL"
    assert bucket in refused("s3://nobucket/x", "s3://nobucket/*", "s3://nobucket")
    sources = (url, f"{url}/x.jsonl", f"{url}/*", f"{url}/x.lance")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "somethingelse")
        assert "the secret key is not that of the access key" in refused(*sources)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert "(AWS_ACCESS_KEY_ID) is unknown" in refused(*sources)
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        said = refused(*sources)
        assert "with these credentials, or with none" in said and "AWS_ACCESS_KEY_ID" in said
    for pattern in ("none", "n*", "none/"):
        with pytest.raises(ConfigError, match="there is no such jsonl file in the store"):
            find_files([f"{url}/{pattern}"], "jsonl")


@pytest.mark.slow
def test_a_store_that_does_not_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in (silent_host, closing_host):
        with host() as opened:
            monkeypatch.setenv("AWS_ENDPOINT", opened.endpoint)
            assert "does not answer" in refused(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    assert "does not answer. Is the network up, and the endpoint right" in refused(url)


@pytest.mark.slow
def test_a_store_that_dies_while_a_file_is_read(
    url: str, put: Put, object_store: ObjectStore
) -> None:
    put("x.parquet", data=parquet(ROWS, row_group_size=700))
    put("x.txt", data=b"text\n" * 5_000_000)
    for kind in ("parquet", "txt"):
        stream = read_files(kind, [f"{url}/x.{kind}"], Columns(), print)
        next(stream)
        object_store.kill()
        try:
            with pytest.raises(InputError, match=rf"x\.{kind} cannot be read: the store does not"):
                list(stream)
        finally:
            object_store.start()


def test_a_damaged_file_is_no_failure_of_the_store(url: str, put: Put) -> None:
    put("x.parquet", data=parquet(ROWS)[:-9])
    put("x.jsonl.gz", data=gzip.compress(ROWS["text"].to_pandas().to_json().encode())[:-99])
    bad: list[BadRow] = []
    for kind in ("parquet", "jsonl"):
        with pytest.raises(InputError, match=rf"x\.{kind}\S* cannot be read as {kind}: "):
            list(read_files(kind, [url], Columns(), bad.append))
    assert not bad
