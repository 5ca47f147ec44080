"""A cache in an object store: addresses, the whole life of a space there, and what it costs."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import obstore
import pyarrow as pa
import pytest

from embcache import CacheError, CacheWriteError, ConfigError, DamagedSpaceError, UnreachableError
from embcache.store import Database, Location, Overlay, Space
from embcache.store import space as space_module
from embcache.store.bucket import Bucket
from embcache.store.compaction import clean_up
from embcache.store.traffic import Traffic
from embcache.tools.check import check_space
from embcache.tools.compact import compact_space
from tests.object_store import ObjectStore, Remote
from tests.slow_host import answering_host, closing_host
from tests.spaces import IDENTITY, make_rows, read_all

HASTE = {"client_max_retries": "0", "client_retry_timeout": "1", "timeout": "5s"}


def open_space(remote: Remote, **kwargs: Any) -> Space:
    database = Database(remote.url, remote.options, writable=True)
    kwargs = {"compact_automatically": False, **kwargs}
    return database.space(IDENTITY, IDENTITY.model, "vllm 1.0", **kwargs)


def requests(space: Space) -> int:
    return space.location.traffic.requests


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("s3://bucket/cache", "s3://bucket/cache"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("az://container/cache", "az://container/cache"),
        ("abfss://c@account.dfs.core.windows.net/x", "abfss://c@account.dfs.core.windows.net/x"),
        ("hf://datasets/team/cache", "hf://datasets/team/cache"),
    ],
)
def test_addresses(url: str, uri: str) -> None:
    location = Location.of(url, {"token": "hush"})
    assert isinstance(location, Bucket) and str(location) == uri and "hush" not in repr(location)
    table = location.table("name")
    assert str(table) == f"{uri}/name.lance" and table.is_table and table.name == "name"
    assert table.parent.same_as(location) and table.storage_options == {"token": "hush"}
    assert table.folder is None and Location.of(table) is table
    assert location.within("name.lance") == table


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://bucket/cache", "a URL of https:"),
        ("file:///tmp", "a URL of file:"),
        ("memory://x", "a URL of memory:"),
        (Path("s3://bucket/cache"), r"'s3:/bucket/cache' has lost a slash"),
        ("s3://", "is no place of a cache"),
        ("s3:///cache", "is no place of a cache"),
        ("s3://user:hush@bucket/cache", "without user, password"),
        ("s3://bucket/cache?token=hush", r"query \(\?...\)"),
        ("s3://bucket/cache#x", "is no place of a cache"),
        ("s3://bucket//cache", "empty parts"),
        ("s3://bucket/a/../b", r"'\.' or '\.\.' in it, which no store follows"),
        ("s3://bucket/%2e%2E/b", r"'\.' or '\.\.' in it, which no store follows"),
        ("s3://bucket/.", r"'\.' or '\.\.' in it, which no store follows"),
        ("s3://bucket/a\\b", "a slash or backslash within a name"),
        ("s3://bucket/a%2fb", "a slash or backslash within a name"),
        ("S3://bucket/cache", "a URL of S3:, and a cache is a directory or in a store: s3://"),
        (" s3://bucket/cache", "a URL of  s3:, and a cache is a directory or in a store: s3://"),
        ("s3://bucket/a\nb", "is no place of a cache"),
    ],
)
def test_what_is_no_address(url: str | Path, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Location.of(url)
    assert "hush" not in str(caught.value)


def test_a_space_from_its_beginning_to_its_end(remote: Remote) -> None:
    space, rows = open_space(remote), make_rows([f"text {i}" for i in range(200)])
    assert not space.location.has_table() and not space.location.parent.exists()
    space.add(rows)
    other = open_space(remote)
    assert other.name == space.name and len(other.refresh()) == 200
    values, damaged = read_all(other, rows)
    assert values.tobytes() == rows.values.tobytes() and not damaged.any()
    reader = other.open()
    assert reader.dataset.has_stable_row_ids and reader.metadata == space.metadata
    other.add(make_rows([f"text {i}" for i in range(190, 210)], seed=1))
    assert len(other.snapshot) == 210  # ten were there
    other.drop(rows.keys[:5])
    assert len(other.refresh(now=True)) == 205
    before = other.location.size()
    assert compact_space(other, older_than=timedelta(0)).fragments_after == 1
    assert 0 < other.location.size() < before + 10_000
    assert check_space(other).ok and len(other.location.versions()) == 1
    tables = Database(remote.url, remote.options, writable=False).location.tables()
    assert [table.name for table in tables] == [space.name]
    other.location.remove()
    assert not other.location.has_table() and other.location.parent.tables() == []


def test_removing_leaves_other_tables(remote: Remote) -> None:
    database = Database(remote.url, remote.options, writable=True)
    for dtype in ("float32", "bfloat16"):
        identity = IDENTITY.with_dtype(dtype)
        space = database.space(identity, identity.model, "vllm 1.0")
        space.add(make_rows(["a"], identity=identity))
    names = [one.name for one in database.spaces()]
    assert len(names) == 2
    with pytest.raises(CacheError, match=r"is no table: its name does not end in .lance"):
        database.location.remove()
    database.location.table(names[0]).remove()
    assert [one.name for one in database.spaces()] == names[1:]


def test_tables_are_what_was_committed_to(remote: Remote, object_store: ObjectStore) -> None:
    place = Location.of(remote.url, remote.options)
    for name in ("b", "a", "c"):
        lance.write_dataset(
            pa.table({"a": [1]}), str(place.table(name)), storage_options=remote.options
        )
    prefix = remote.url.removeprefix("s3://bucket/")
    obstore.put(object_store.client(), f"{prefix}/begun.lance/data/0.lance", b"left by a kill")
    before = place.traffic.requests
    assert [one.name for one in place.tables()] == ["a", "b", "c"]
    assert place.traffic.requests - before == 5


def test_dtypes_are_found_without_opening_other_models(remote: Remote) -> None:
    database = Database(remote.url, remote.options, writable=True)
    others = [replace(IDENTITY, model=f"organization/other-{i}") for i in range(5)]
    for identity in (IDENTITY, IDENTITY.with_dtype("bfloat16"), *others):
        space = database.space(identity, identity.model, "vllm 1.0")
        space.add(make_rows(["a"], identity=identity))
    before = database.location.traffic.requests
    assert database.cached_dtypes(IDENTITY.with_dtype("auto")) == ["bfloat16", "float32"]
    assert database.location.traffic.requests - before <= 7


def test_damaged_rows_are_deleted_in_place(remote: Remote) -> None:
    space, rows = open_space(remote), make_rows(["a", "b", "c"])
    space.add(rows)
    schema = space.open().schema
    bad, other = make_rows(["b"], seed=5), make_rows(["d"])
    space.append(
        bad.to_arrow(schema, store_text=True).set_column(
            0, schema.field(0), other.to_arrow(schema, store_text=True).column(0)
        ),
        8,
    )
    found = check_space(space)
    assert not found.ok and found.damaged == 1 and found.rows == 4
    assert check_space(space, fix=True).ok and check_space(space).rows == 3
    assert not read_all(open_space(remote), rows)[1].any()


def test_what_looking_costs(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh of what was just seen costs nothing, one that looks again a single request, and one
    that must see the table itself two."""
    space, rows = open_space(remote), make_rows([f"text {i}" for i in range(100)])
    space.add(rows)
    before = requests(space)
    snapshot = space.refresh()
    assert requests(space) == before
    assert space.refresh(now=True) is snapshot and requests(space) == before + 2
    monkeypatch.setattr(space_module, "FRESH_SECONDS", 0.0)
    assert space.refresh() is snapshot and requests(space) == before + 3
    database = Database(remote.url, remote.options, writable=True)
    before = database.location.traffic.requests
    other = database.space(IDENTITY, IDENTITY.model, "vllm 1.0", compact_automatically=False)
    assert requests(other) == before + 1
    before = requests(other)
    assert len(other.refresh()) == 100
    assert requests(other) - before <= 9
    before = requests(other)
    read_all(other, rows)
    assert requests(other) - before <= 6
    assert other.location.traffic.bytes > rows.values.nbytes


def test_what_a_commit_costs(remote: Remote) -> None:
    """Seven requests, its rows' keys included, and nothing is listed to find what it committed."""
    space = open_space(remote)
    space.add(make_rows(["a"]))
    reader, before = space.snapshot.reader, requests(space)
    space.add(make_rows(["b"]))
    assert requests(space) - before <= 7
    assert reader is not None and len(reader) == 1 and len(space.snapshot) == 2
    assert space.refresh() is space.snapshot and space.refresh(now=True) is space.snapshot


def test_a_commit_sees_what_others_have_committed(remote: Remote) -> None:
    mine, theirs = open_space(remote), open_space(remote)
    mine.add(make_rows(["a"]))
    assert len(theirs.refresh()) == 1
    mine.add(make_rows(["b"]))
    theirs.add(make_rows(["c"]))
    rows = make_rows(["a", "b", "c"])
    assert len(theirs.snapshot) == 3 and (theirs.snapshot.find(rows.keys) >= 0).all()


def test_many_fragments_are_read_in_any_pattern(remote: Remote) -> None:
    space, rows = open_space(remote), make_rows([f"text {i}" for i in range(4000)], dim=384)
    for start in range(0, 4000, 1000):
        space.add(rows.take(np.arange(start, start + 1000)))
    snapshot = open_space(remote).refresh()
    for wanted in (np.arange(4000), np.arange(0, 4000, 7), np.array([3999, 5, 5, 1000])):
        before = snapshot.reader.location.traffic if snapshot.reader else Traffic()
        values, damaged = snapshot.read_all(snapshot.find(rows.keys[wanted]), rows.keys[wanted])
        assert values.tobytes() == rows.values[wanted].tobytes() and not damaged.any()
        assert snapshot.reader is not None
        assert snapshot.reader.location.traffic.since(before).requests <= 24


def test_others_rows_are_seen_some_seconds_later(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = open_space(remote), open_space(remote)
    mine.add(make_rows(["a"]))
    assert len(theirs.refresh()) == 1
    mine.add(make_rows(["b"]))
    assert len(theirs.refresh()) == 1 and len(theirs.refresh(now=True)) == 2
    mine.add(make_rows(["c"]))
    monkeypatch.setattr(space_module, "FRESH_SECONDS", 0.0)
    assert len(theirs.refresh()) == 3


def test_old_versions_stay_for_their_readers_for_an_hour(remote: Remote) -> None:
    space, rows = open_space(remote), make_rows(["a"])
    space.add(rows)
    old = space.open()
    compact_space(space)
    clean_up(space.location, timedelta(0))
    assert len(old.take(np.array([0]), ["key"])) == 1


def test_a_writer_compacts_here_too(remote: Remote) -> None:
    space = open_space(remote, compact_automatically=True)
    for i in range(40):
        space.add(make_rows([f"text {i}"], seed=i))
        space.compactor.join()
    assert len(space.open().fragments) < 20 and check_space(space).rows == 40


def test_a_damaged_manifest_is_reported_and_stays(
    object_store: ObjectStore, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    space = open_space(remote)
    space.add(make_rows(["a"]))
    space.add(make_rows(["b"]))
    newest = f"{space.location.uri.partition('bucket/')[2]}/_versions/{2**64 - 1 - 3:020}.manifest"
    obstore.put(object_store.client(), newest, b"junk")
    other = open_space(remote)
    with pytest.raises(DamagedSpaceError, match="Opening"):
        other.refresh(now=True)
    assert len(other.refresh_or_salvage(write=True, now=True)) == 1
    assert "cannot be used" in caplog.text or "Opening" in caplog.text
    assert bytes(obstore.get(object_store.client(), newest).bytes()) == b"junk"


def test_an_outage_is_no_damage(
    object_store: ObjectStore,
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else rows would be taken for lost, and encoded again."""
    impatient = {"client_max_retries": "1", "client_retry_timeout": "1", "timeout": "2s"}
    space = open_space(Remote(remote.url, {**remote.options, **impatient}))
    rows = make_rows([f"text {i}" for i in range(3000)])
    space.add(rows)
    object_store.kill()
    try:
        with pytest.raises(UnreachableError, match="did not answer, or refused") as caught:
            space.refresh(now=True)
        assert not isinstance(caught.value, DamagedSpaceError)
        with pytest.raises(UnreachableError, match="Reading vectors from"):
            space.snapshot.read_all(np.arange(3000), rows.keys)
        with pytest.raises(UnreachableError, match="did not answer"):
            space.refresh_or_salvage(write=True, now=True)
        monkeypatch.setattr(space_module, "FRESH_SECONDS", 600.0)
        with pytest.raises(CacheWriteError, match=r"Writing to .* did not answer"):
            space.add(make_rows(["new"]))
        for text in (str(caught.value), caplog.text):
            assert object_store.secret not in text and object_store.key not in text
    finally:
        object_store.start()
    assert len(space.refresh(now=True)) == 3000 and not read_all(space, rows)[1].any()


def test_an_outage_at_a_commit_costs_no_vectors(
    object_store: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store's patience is waited for once, not at every chunk from then on."""
    impatient = {"client_max_retries": "1", "client_retry_timeout": "1", "timeout": "2s"}
    space = open_space(Remote(remote.url, {**remote.options, **impatient}))
    space.add(make_rows(["a"]))
    overlay = Overlay(space, write=True, salvage=True)
    object_store.kill()
    try:
        monkeypatch.setattr(space_module, "FRESH_SECONDS", 0.0)
        overlay.add(make_rows(["b"]))
        assert isinstance(overlay.refusal, CacheWriteError) and overlay.unwritten == 1
        monkeypatch.setattr(Space, "refresh", None)
        assert len(overlay.add(make_rows(["c"]))) == 3 and overlay.unwritten == 2
    finally:
        object_store.start()


def test_a_table_that_is_made_again_while_it_is_opened(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, tries = open_space(remote), []
    space.add(make_rows(["a"]))
    look = lance.dataset

    def find_nothing_at_first(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise ValueError("Dataset at path x was not found: Not found: x/_versions")
        return look(*args, **kwargs)

    monkeypatch.setattr(lance, "dataset", find_nothing_at_first)
    assert len(space.open()) == 1 and len(tries) == 2


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["commit", "trial"])
def test_a_lost_connection_is_ridden_out(
    object_store: ObjectStore, remote: Remote, doing: str
) -> None:
    space = open_space(remote)
    space.add(make_rows(["a"]))
    object_store.kill()
    timer = threading.Timer(8, object_store.start)
    timer.start()
    began = time.monotonic()
    try:
        if doing == "trial":
            space.location.try_committing()
        else:
            space.add(make_rows(["b"]))
        assert time.monotonic() - began > 5
    finally:
        timer.join()
    assert len(space.refresh(now=True)) == (1 if doing == "trial" else 2)


def test_no_message_has_a_secret(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    location = Location.of(remote.url, {**remote.options, "azure_storage_sas_key": "sv=2024&sig=1"})
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-environment")
    secret, key = remote.options["aws_secret_access_key"], remote.options["aws_access_key_id"]
    said = f"{secret} {key} sv=2024&sig=1 token-of-the-environment http://me:pw@host us-east-1"
    assert location.without_secrets(said) == "*** *** *** *** http://***@host us-east-1"
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    wrong = {**remote.options, "aws_secret_access_key": "not-the-secret-at-all"}
    with pytest.raises(UnreachableError, match="SignatureDoesNotMatch") as caught:
        Database(remote.url, wrong, writable=True)
    for text in (str(caught.value), repr(caught.value), caplog.text):
        assert "not-the-secret" not in text and key not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "said",
    [
        # An expired token, as AWS says it; a bucket in another region; a proxy that is in the way.
        "Generic S3 error: Error performing GET http://host/x in 1ms - Server returned non-2xx "
        "status code: 400 Bad Request: <Error><Code>ExpiredToken</Code></Error>",
        "Generic S3 error: Error performing GET http://host/x in 1ms - Received redirect without "
        "LOCATION, this normally indicates an incorrectly configured region",
        "Generic S3 error: Error performing list request: Error performing GET http://host/x in "
        "1ms - Server returned non-2xx status code: 404 Not Found: <html>",
        "Generic S3 error: Received non-partial response when range requested",
        "Generic MicrosoftAzure error: Got invalid list response: unexpected `Event::Eof`",
    ],
)
def test_what_is_an_outage(said: str) -> None:
    assert Location.of("s3://bucket/cache").is_outage(OSError(f"LanceError(IO): {said}"))


@pytest.mark.parametrize(
    "said",
    [
        "Not found: cache/data/0.lance",
        "Generic S3 error: Error performing GET http://host/x in 1ms - Server returned non-2xx "
        "status code: 416 Requested Range Not Satisfiable: ",
        "Generic memory error: Invalid range 0..0 for object of size 0 bytes",
        "file size is too small",
        "I/O request for file x and range 0..9 returned 8 bytes, expected 9 bytes",
    ],
)
def test_what_is_damage(said: str) -> None:
    assert not Location.of("s3://bucket/cache").is_outage(OSError(f"LanceError(IO): {said}"))


@pytest.mark.parametrize("status", [400, 301, 404, 503])
def test_refusals_in_the_middle_are_no_damage(status: int) -> None:
    answer = "<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"
    with answering_host(status, answer) as host:
        table = Location.of("s3://bucket/cache", {**host.options, **HASTE}).table("x")
        with pytest.raises(UnreachableError, match="did not answer, or refused, for minutes"):
            table.versions()
        with pytest.raises(UnreachableError, match="did not answer, or refused, for minutes"):
            Space(table).open()


def test_how_often_lance_lists() -> None:
    """What patience is multiplied by, see `bucket.PATIENT`."""
    with closing_host() as host:
        table = Location.of("s3://bucket/cache", {**host.options, **HASTE}).table("x")
        with pytest.raises(UnreachableError, match="did not answer"):
            Space(table).open()
        assert len(host.accepted) == 6


def test_one_place_in_two_spellings() -> None:
    assert Location.of("s3://bucket/a%20b").same_as(Location.of("s3://bucket/a b"))
    assert not Location.of("s3://bucket/a+b").same_as(Location.of("s3://bucket/a b"))


@pytest.mark.parametrize(
    "name",
    ["azure_storage_account_key", "google_service_account_key", "aws_session_token", "account_key"],
)
def test_credentials_of_every_store_are_secret(name: str) -> None:
    location = Location.of("az://container/cache", {name: "hush/hush+hush"})
    said = "key hush/hush+hush, in a URL hush%2Fhush%2Bhush"
    assert location.without_secrets(said) == "key ***, in a URL ***"


def test_what_a_store_repeats_of_a_request_is_not_shown() -> None:
    answer = (
        '403 Forbidden: <?xml version="1.0"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>'
        "No match.</Message><CanonicalRequest>x-amz-security-token:hush</CanonicalRequest></Error>"
    )
    location = Location.of("s3://bucket/cache")
    assert location.without_secrets(answer) == "403 Forbidden: SignatureDoesNotMatch: No match."
    said = location.without_secrets("GET https://host/c?sv=2024&sig=hush%3D&se=2030 failed")
    assert said == "GET https://host/c?sv=2024&sig=***&se=2030 failed"
