"""Folders that other hosts may be at: network file systems, and clocks that are wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from embcache.store import Space, compaction, hosts, lance_errors, manifests
from embcache.store.compaction import clean_up
from embcache.store.hosts import is_shared, now
from tests.spaces import folder, make_rows

Open = Callable[..., Space]
NOW = timedelta(0)
MOUNT = "36 35 98:0 / {} rw,noatime shared:1 - {} server:/export rw,addr=10.0.0.1\n"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what is mounted where, in order: `mounted(("/", "ext4"), ("/net", "nfs4"))`."""

    def mounted(*mounts: tuple[str, str]) -> None:
        table = tmp_path / "mountinfo"
        table.write_text("".join(MOUNT.format(*one) for one in mounts))
        monkeypatch.setattr(hosts, "_MOUNTS", table)

    return mounted


@pytest.fixture
def network(mounted: Callable[..., None]) -> None:
    """All is on a network file system."""
    mounted(("/", "nfs4"))


def test_which_file_systems_are_shared(mounted: Callable[..., None]) -> None:
    mounted(
        ("/", "overlay"),
        ("/net", "nfs4"),
        ("/net/disk", "ext4"),
        (r"/with\040space", "fuse.sshfs"),
        ("/over", "ext4"),
        ("/over", "cifs"),
    )
    shared = ["/net", "/net/a/b", "/with space/cache", "/over/a"]
    assert [place for place in shared if not is_shared(Path(place))] == []
    local = ["/", "/home", "/network", "/net/disk/a", "/with"]
    assert [place for place in local if is_shared(Path(place))] == []


def test_a_link_to_a_network(mounted: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "link").symlink_to("net")
    mounted(("/", "ext4"), (str(tmp_path / "net"), "lustre"))
    assert is_shared(tmp_path / "link" / "cache") and not is_shared(tmp_path)


def test_an_unknown_file_system_and_none_known(
    mounted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounted(("/", "newfs"))
    assert is_shared(tmp_path)
    monkeypatch.setattr(hosts, "_MOUNTS", tmp_path / "none")
    assert is_shared(tmp_path)


def test_the_disk_of_the_tests_is_known(tmp_path: Path) -> None:
    assert Path("/proc/self/mountinfo").exists()
    assert isinstance(is_shared(tmp_path), bool) and not is_shared(Path("/dev/shm"))


def test_the_time_is_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time()
    monkeypatch.setattr("time.time", lambda: right + 7200)
    assert abs(now(tmp_path) - right) < 60 and list(tmp_path.iterdir()) == []
    assert now(tmp_path / "none") == right + 7200


def filled(open_space: Open) -> Space:
    space = open_space(compact_automatically=False)
    for number in range(60):
        space.add(make_rows([str(number)]))
    return space


def count(space: Space) -> int:
    return len(list((folder(space) / "_versions").glob("*.manifest")))


@pytest.mark.usefixtures("network")
def test_no_version_of_the_last_hour_goes(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not see the newest ones yet would give one of their numbers away again."""
    monkeypatch.setattr(compaction, "SLACK_BYTES", 0)
    space = filled(open_space)
    clean_up(space.location, NOW)
    space.optimize(NOW)
    assert count(space) >= 60
    aged(space)
    clean_up(space.location, NOW)
    assert count(space) == 2  # one is what the handle reads
    assert len(open_space().refresh()) == 60


@pytest.mark.usefixtures("network")
def test_what_nobody_has_committed_stays(open_space: Open) -> None:
    """Another host may be about to."""
    space = filled(open_space)
    written = folder(space) / "data" / "written.lance"
    written.write_bytes(b"x")
    aged(space)
    clean_up(space.location, NOW)
    assert written.exists()


def aged(space: Space) -> None:
    """Hours pass."""
    then = now(folder(space)) - 2 * 3600
    for path in folder(space).rglob("*"):
        os.utime(path, (then, then))


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_is_wrong(
    open_space: Open, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Nothing young goes where this host's clock is ahead, and what is old goes where it is not."""
    space = filled(open_space)
    young = [folder(space) / "data" / "young.lance", folder(space).parent / ".creating-young"]
    young[0].write_bytes(b"x")
    young[1].mkdir()
    right = time.time()
    monkeypatch.setattr("time.time", lambda: right + hours * 3600)
    clean_up(space.location, timedelta(hours=1))
    assert all(path.exists() for path in young)
    assert manifests.newest_committed(folder(space)) == 61
    aged(space)
    os.utime(young[1], (right - 7200, right - 7200))
    clean_up(space.location, timedelta(hours=1))
    assert [path for path in young if path.exists()] == []


def test_a_name_that_is_taken_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    """SFTP does not say why it makes no link; it is tried until another process stops."""
    clock = iter(range(100))
    monkeypatch.setattr(lance_errors.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(lance_errors.time, "monotonic", lambda: next(clock))
    said = "LanceError(IO): Generic LocalFileSystem error: Unable to {}: Operation not permitted "
    errors = [
        OSError(said.format(what) + "(os error 1), commit.rs:1663:50")
        for what in ("rename file", "open file a.lance/_versions/18446744073709551584.manifest#1")
    ]
    assert all(map(lance_errors.is_conflict, errors))
    done = 0

    def commit() -> None:
        nonlocal done
        done += 1
        if done < 20:
            raise errors[done % 2]

    lance_errors.despite_conflicts(commit, 3)
    assert done == 20
    done = -1000
    with pytest.raises(OSError, match="Operation not permitted"):
        lance_errors.despite_conflicts(commit, 3)
    assert -990 < done < -900
