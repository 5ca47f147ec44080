"""A gateway to the tests' object store on which no write is conditional, as on some real ones.

Clients sign `If-None-Match`, so it cannot just be left out: a PUT that is refused for it is made
again without. Everything else passes as it is, and the store behind checks each signature.
"""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import obstore
import pytest

from tests.object_store import BUCKET, ObjectStore

SECONDS = 60
# Of a connection, and not of what is sent over it.
HOPS = ("connection", "keep-alive", "transfer-encoding", "content-length")
# 412: it exists. 409: somebody else is writing it.
REFUSED = (409, 412)


class Gateway(BaseHTTPRequestHandler):
    """Passes a request on, and the answer back."""

    protocol_version = "HTTP/1.1"

    def __init__(self, store: ObjectStore, *arguments: Any) -> None:
        self.store = store
        super().__init__(*arguments)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            answer, content = self.ask(self.path, dict(self.headers), body)
            if answer.status in REFUSED and self.headers.get("if-none-match"):
                answer, content = self.put(body)
        except (OSError, HTTPException) as error:  # the store was killed, say
            self.send_error(502, type(error).__name__)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOPS:
                self.send_header(name, value)
        length = answer.getheader("content-length") if self.command == "HEAD" else len(content)
        self.send_header("content-length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def put(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        """Write what a condition forbade."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        key = path.removeprefix(f"/{BUCKET}/")
        signed = obstore.sign(self.store.client(), "PUT", key, timedelta(minutes=1))
        target = urllib.parse.urlsplit(signed)._replace(scheme="", netloc="").geturl()
        headers = {"host": f"127.0.0.1:{self.store.port}", "content-length": str(len(body))}
        return self.ask(target, headers, body)

    def ask(self, target: str, headers: dict[str, str], body: bytes) -> tuple[HTTPResponse, bytes]:
        """What the store says; `Host` goes as the client signed it."""
        connection = HTTPConnection("127.0.0.1", self.store.port, timeout=SECONDS)
        try:
            connection.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def log_message(self, *_: Any) -> None:
        """Nothing: pytest shows what fails."""


@dataclass(frozen=True)
class CarelessStore:
    """The tests' object store through such a gateway.

    Attributes:
        store: What is behind it.
        endpoint: Where it listens.
    """

    store: ObjectStore
    endpoint: str

    @property
    def options(self) -> dict[str, str]:
        """`storage_options` to reach it with."""
        return {**self.store.options, "aws_endpoint": self.endpoint}

    def url(self, name: str = "cache") -> str:
        """An address in it that nothing has used yet."""
        return self.store.url(name)


@pytest.fixture(scope="session")
def careless_store(object_store: ObjectStore) -> Iterator[CarelessStore]:
    """An object store on which every PUT wins, conditional or not."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Gateway, object_store)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield CarelessStore(object_store, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
