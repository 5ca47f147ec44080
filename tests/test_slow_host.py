"""The hosts that are no object store."""

from __future__ import annotations

import threading
from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.slow_host import Host, answering_host, closing_host, silent_host


def client(host: Host) -> S3Store:
    """A client that waits half a second."""
    config = {name: value for name, value in host.options.items() if name != "allow_http"}
    return S3Store(
        "bucket",
        config=config,
        client_options={"allow_http": True, "timeout": timedelta(milliseconds=500)},
        retry_config={"max_retries": 0},
    )


def test_a_silent_host_never_answers() -> None:
    with silent_host() as host:
        with pytest.raises(BaseError, match="kind: Timeout"):
            obstore.get(client(host), "anything")
        assert len(host.accepted) == 1
        assert host.accepted[0].recv(3) == b"GET"


def test_a_closing_host_closes() -> None:
    with closing_host() as host:
        with pytest.raises(BaseError, match="error sending request"):
            obstore.get(client(host), "anything")
        assert host.accepted


def test_an_answering_host_answers() -> None:
    with (
        answering_host(400, "<Code>ExpiredToken</Code>") as host,
        pytest.raises(BaseError, match="400 Bad Request: <Code>ExpiredToken</Code>"),
    ):
        obstore.get(client(host), "anything")


@pytest.mark.parametrize("make", [silent_host, closing_host])
def test_nothing_is_left_behind(make: object) -> None:
    threads = threading.active_count()
    with make() as host:
        pass
    assert threading.active_count() == threads
    with pytest.raises(BaseError, match="error sending request"):
        obstore.get(client(host), "anything")
