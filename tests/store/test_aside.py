from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from embcache.store.aside import left, locked, manifests, read_ends, set_aside


def test_manifests_of_both_naming_schemes_newest_first(tmp_path: Path) -> None:
    folder = tmp_path / "_versions"
    folder.mkdir()
    names = [f"{2**64 - 1 - version}" for version in (1, 12)] + ["3", "d77", "latest"]
    for name in names:
        (folder / f"{name}.manifest").touch()
    (folder / f"{2**64 - 3}.manifest.damaged-20261125T120000").touch()
    assert list(manifests(tmp_path)) == [12, 3, 1]
    assert manifests(tmp_path)[12].stem == names[1]
    assert manifests(tmp_path / "nowhere") == {}


def test_what_is_set_aside_keeps_its_place_and_bytes(tmp_path: Path) -> None:
    table = tmp_path / "name.lance"
    (table / "_versions").mkdir(parents=True)
    (table / "_versions" / "1.manifest").write_bytes(b"bytes")
    manifest = set_aside(table / "_versions" / "1.manifest")
    assert manifest.read_bytes() == b"bytes" and manifests(table) == {}
    assert left(tmp_path) == [manifest]
    folder = set_aside(table)
    table.mkdir()
    assert (folder / "_versions" / manifest.name).read_bytes() == b"bytes"
    assert not folder.match("*.lance") and set_aside(table) != folder


def test_reading_the_ends_of_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3 * 2**20))
    read_ends([file, tmp_path / "removed by a compaction"])
    with pytest.raises(OSError, match="directory"):
        read_ends([file, tmp_path])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    other = [sys.executable, "-c", code, str(tmp_path)]
    with locked(tmp_path):
        assert subprocess.run(other, capture_output=True, check=False).returncode == 1
    assert subprocess.run(other, capture_output=True, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_one_thread_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with locked(tmp_path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
