"""What a store that cannot be used says, and how soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embcache import CacheWriteError, UnreachableError
from embcache.store import Database
from tests.careless_store import CarelessStore
from tests.object_store import BUCKET, ObjectStore, Remote
from tests.slow_host import closing_host, silent_host


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def objects(store: ObjectStore, remote: Remote) -> list[str]:
    """What lies at an address."""
    import obstore

    prefix = remote.url.removeprefix(f"s3://{BUCKET}/")
    return [one["path"] for page in obstore.list(store.client(), prefix) for one in page]


def test_a_store_that_can_be_used(object_store: ObjectStore, remote: Remote) -> None:
    with within(10):
        database = Database(remote.url, remote.options, writable=True)
    database.try_creating()
    assert database.location.traffic.requests == 24
    assert objects(object_store, remote) == []  # nothing is left of what was tried


def test_what_the_environment_says(
    object_store: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    assert not Database(remote.url, writable=True).location.exists()


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aws_secret_access_key": "wrong-wrong"}, "SignatureDoesNotMatch. The secret key is not"),
        ({"aws_access_key_id": "nobody-here"}, "InvalidAccessKeyId. The access key is unknown"),
        ({"aws_endpoint": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer. Is the end"),
        ({"aws_endpoint": "http://no.such.host.invalid"}, "does not answer. Is the endpoint right"),
        ({"aws_endpoint": "nonsense"}, "plain HTTP, or is no URL: give allow_http=true, or mend"),
        ({"allow_http": "false"}, "plain HTTP, or is no URL: give allow_http=true, or mend it"),
    ],
)
def test_wrong_options(remote: Remote, options: dict[str, str], said: str, writable: bool) -> None:
    with within(10), pytest.raises(UnreachableError, match=said) as caught:
        Database(remote.url, {**remote.options, **options}, writable=writable)
    assert remote.url in str(caught.value) and "wrong-wrong" not in str(caught.value)
    assert "/home/" not in str(caught.value)  # of Lance's own source files


@pytest.mark.parametrize("writable", [True, False])
def test_a_missing_bucket(remote: Remote, writable: bool) -> None:
    with (
        within(10),
        pytest.raises(UnreachableError, match=r"NoSuchBucket\. There is no such bucket"),
    ):
        Database("s3://no-such-bucket/cache", remote.options, writable=writable)


@pytest.mark.parametrize("host", [silent_host, closing_host])
def test_hosts_that_do_not_answer(host) -> None:  # type: ignore[no-untyped-def]
    with host() as there, within(10), pytest.raises(UnreachableError, match="does not answer"):
        Database("s3://bucket/cache", there.options, writable=True)


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, remote: Remote) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    options = {k: v for k, v in remote.options.items() if "key" not in k}
    with within(10), pytest.raises(UnreachableError, match="no credentials were found"):
        Database(remote.url, options, writable=False)


def test_credentials_of_a_profile(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("aws_access_key_id", "aws_secret_access_key")
    lines = [f"{name} = {remote.options[name]}" for name in names]
    (tmp_path / "credentials").write_text("\n".join(["[default]", *lines]))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {name: value for name, value in remote.options.items() if name not in names}
    Database(remote.url, options, writable=True).try_creating()


@pytest.mark.parametrize("more", [{"aws_of_tomorrow": "x"}, {"aws_conditional_put": "etag"}])
def test_whatever_lance_takes_is_taken(remote: Remote, more: dict[str, str]) -> None:
    Database(remote.url, {**remote.options, **more}, writable=True)


def test_an_endpoint_by_another_name(remote: Remote) -> None:
    options = {**remote.options, "endpoint_url": remote.options["aws_endpoint"]}
    del options["aws_endpoint"]
    Database(remote.url, options, writable=True)


def test_a_store_without_conditional_writes(careless_store: CarelessStore) -> None:
    url = careless_store.url()
    said = r"cannot be written safely: the store writes an object again .*If-None-Match"
    with within(10), pytest.raises(CacheWriteError, match=said):
        Database(url, careless_store.options, writable=True)
    assert objects(careless_store.store, Remote(url, {})) == []
    assert not Database(url, careless_store.options, writable=False).location.exists()


def test_what_is_only_for_reading() -> None:
    from embcache.store import Location

    with pytest.raises(CacheWriteError, match=r"cannot be written: hf:// is for reading"):
        Location.of("hf://datasets/team/cache").try_writing()
