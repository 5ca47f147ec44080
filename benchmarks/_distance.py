"""A store that is far away: a proxy before one on this machine that delays and counts requests.

It runs in a process of its own. HTTP/1.1 without pipelining: where a connection's direction turns,
a request begins, or its answer. Each of these first bytes waits for half of the delay, what follows
does not: that is what distance does to requests, and to nothing else.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any, NamedTuple

_CHUNK = 2**18
_START_SECONDS = 30
_LINE = re.compile(rb"(\w+) (\S+) HTTP/1.1\r\n")
_RANGE = re.compile(rb"\r\nrange: (\S+)", re.IGNORECASE)


class Sent(NamedTuple):
    """What went through.

    Attributes:
        requests: How many requests.
        megabytes: What these brought and took.
    """

    requests: int
    megabytes: float


class Distance:
    """The proxy, as the benchmark's process sees it.

    Args:
        port: Where it listens, on 127.0.0.1.
        delay: Seconds that a request takes longer; may be set at any time.
        requests: How many there were.
        size: Bytes that there were.
    """

    def __init__(
        self,
        port: int,
        delay: Synchronized[float],
        requests: Synchronized[int],
        size: Synchronized[int],
    ) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._delay, self._requests, self._size = delay, requests, size

    def set(self, seconds: float) -> None:
        """Let each request take so much longer from now on."""
        self._delay.value = seconds

    def sent(self) -> Sent:
        """What went through since this was last asked."""
        found = Sent(self._requests.value, self._size.value / 1e6)
        self._requests.value = self._size.value = 0
        return found


@contextmanager
def distance(to: int, log: str | None = None) -> Iterator[Distance]:
    """Put a proxy before a port of 127.0.0.1.

    Args:
        to: The port of the store.
        log: A file that gets a line for each request.
    """
    context: Any = multiprocessing.get_context("spawn")
    port, requests, size = context.Value("i", 0), context.Value("q", 0), context.Value("q", 0)
    delay, ready = context.Value("d", 0.0), context.Event()
    given = (to, port, delay, requests, size, ready, log)
    process = context.Process(target=_run, args=given, daemon=True)
    process.start()
    try:
        if not ready.wait(_START_SECONDS):
            raise RuntimeError(f"the proxy did not start within {_START_SECONDS} s")
        yield Distance(port.value, delay, requests, size)
    finally:
        process.terminate()
        process.join()


def _run(to: int, port: Any, delay: Any, requests: Any, size: Any, ready: Any, log: Any) -> None:
    asyncio.run(_serve(to, port, delay, requests, size, ready, log))


async def _serve(
    to: int, port: Any, delay: Any, requests: Any, size: Any, ready: Any, log: Any
) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far, there = await asyncio.open_connection("127.0.0.1", to, limit=_CHUNK)
        asks = [False]  # whether the last bytes went to the store

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool) -> None:
            while data := await source.read(_CHUNK):
                if asks[0] != up:
                    asks[0] = up
                    if up:
                        requests.value += 1
                        if log:
                            _note(log, data)
                    if delay.value:
                        await asyncio.sleep(delay.value / 2)
                size.value += len(data)
                sink.write(data)
                await sink.drain()
            sink.close()

        pumps = (pump(reader, there, True), pump(far, writer, False))
        await asyncio.gather(*pumps, return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_CHUNK)
    port.value = server.sockets[0].getsockname()[1]
    ready.set()
    await server.serve_forever()


def _note(log: str, data: bytes) -> None:
    found, part = _LINE.match(data), _RANGE.search(data)
    line = b" ".join((*found.groups(), part[1] if part else b"")) if found else data[:60]
    with open(log, "ab") as file:
        file.write(line + b"\n")
