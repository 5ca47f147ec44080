"""Hosts that listen and are no object store, for tests of time-outs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Host:
    """Something on 127.0.0.1 that accepts connections.

    Attributes:
        endpoint: Where it listens.
        accepted: Every connection that it accepted.
    """

    endpoint: str
    accepted: list[socket.socket] = field(default_factory=list)

    @property
    def options(self) -> dict[str, str]:
        """`storage_options` to reach it with, as if it were an object store."""
        return {
            "aws_access_key_id": "anybody",
            "aws_secret_access_key": "anything",
            "aws_endpoint": self.endpoint,
            "aws_region": "us-east-1",
            "allow_http": "true",
        }


@contextmanager
def silent_host() -> Iterator[Host]:
    """A host that accepts and never answers, until this ends."""
    with _host(lambda _: None) as host:
        yield host


@contextmanager
def closing_host() -> Iterator[Host]:
    """A host that accepts and closes the connection at once."""
    with _host(socket.socket.close) as host:
        yield host


@contextmanager
def answering_host(status: int, body: str) -> Iterator[Host]:
    """A host that says the same to every request.

    Args:
        status: Of HTTP.
        body: What it says, in ASCII.
    """
    head = f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)  # else closing resets it before the answer is read
        connection.sendall(f"{head}{body}".encode())
        connection.close()

    with _host(answer) as host:
        yield host


@contextmanager
def _host(greet: Callable[[socket.socket], None]) -> Iterator[Host]:
    server = socket.create_server(("127.0.0.1", 0))
    host = Host(f"http://127.0.0.1:{server.getsockname()[1]}")

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # it is shut down, below
                return
            host.accepted.append(connection)
            greet(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown(socket.SHUT_RDWR)  # closing alone would not wake it
        thread.join()
        for one in (server, *host.accepted):
            one.close()
