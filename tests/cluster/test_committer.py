from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embcache.cluster import committer as module
from embcache.cluster.committer import Committer
from embcache.cluster.reports import Written
from embcache.errors import CacheWriteError
from embcache.store import Space
from embcache.tools.check import check_space
from tests.spaces import folder, make_rows, read_all

Open = Callable[..., Space]


class Clock:
    """`time.monotonic` of the committer."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def stage(open_space: Open) -> Callable[..., Written]:
    """Writes rows to a file, as a replica does."""

    def stage_(*texts: str) -> Written:
        space, staged = open_space(), list[Written]()
        space.stage(lambda file, keys: staged.append(Written(file, keys)))
        space.add(make_rows(list(texts)))
        return staged[0]

    return stage_


def test_commits_are_seconds_apart(
    open_space: Open, stage: Callable[..., Written], clock: Clock
) -> None:
    space = open_space()
    committer = Committer(space, compact=False)
    committer.take([stage("a", "b"), stage("c")])
    committer.commit()
    assert len(open_space().refresh()) == committer.committed == 0
    clock.now += module.COMMIT_SECONDS
    committer.commit()
    assert len(open_space().refresh()) == committer.committed == 3
    committer.take([stage("d")])
    committer.commit()
    assert len(open_space().refresh()) == 3
    committer.commit(now=True)
    assert len(open_space().refresh()) == committer.committed == 4
    version = open_space().refresh().reader
    committer.commit(now=True)  # nothing is waiting
    assert open_space().refresh().is_of(version)
    _, failed = read_all(open_space(), make_rows(["a", "b", "c", "d"]))
    assert not failed.any() and check_space(open_space()).ok


def test_slow_commits_are_rarer(
    open_space: Open,
    stage: Callable[..., Written],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = open_space()
    committer = Committer(space, compact=False)
    add_staged = space.add_staged

    def slow(staged: Any) -> Any:
        clock.now += 1
        return add_staged(staged)

    monkeypatch.setattr(space, "add_staged", slow)
    committer.take([stage("a")])
    clock.now += module.COMMIT_SECONDS
    committer.commit()
    assert committer.committed == 1
    committer.take([stage("b")])
    clock.now += 19
    committer.commit()
    assert committer.committed == 1
    clock.now += 1
    committer.commit()
    assert committer.committed == 2


def test_what_waited_too_long_may_be_gone(
    open_space: Open, stage: Callable[..., Written], clock: Clock
) -> None:
    committer = Committer(open_space(), compact=False)
    committer.take([stage("a")])
    clock.now += module.LATE_SECONDS - 1
    committer.take([stage("b")])
    clock.now += 2
    with pytest.raises(
        CacheWriteError, match=r"2 files of .*could not be committed for 30 minutes"
    ):
        committer.commit()
    assert committer.committed == 0 and len(open_space().refresh()) == 0


def test_what_cannot_be_committed_is_tried_again(
    open_space: Open,
    stage: Callable[..., Written],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = open_space()
    committer = Committer(space, compact=False)
    committer.take([stage("a")])

    def fail(staged: Any) -> None:
        raise CacheWriteError("full")

    with monkeypatch.context() as patch:
        patch.setattr(space, "add_staged", fail)
        with pytest.raises(CacheWriteError, match="full"):
            committer.commit(now=True)
    committer.commit(now=True)
    assert committer.committed == len(open_space().refresh()) == 1


def test_in_a_store_commits_are_rarer(clock: Clock) -> None:
    space: Any = SimpleNamespace(location=SimpleNamespace(folder=None))
    space.add_staged = lambda staged: []
    committer = Committer(space, compact=False)
    committer.take([Written("f", np.zeros((3, 2), np.uint64))])
    clock.now += module.COMMIT_SECONDS
    committer.commit()
    assert committer.committed == 0
    clock.now += module.COMMIT_SECONDS_IN_A_STORE
    committer.commit()
    assert committer.committed == 3


class Merges:
    """Ray, as far as the committer asks it to merge: what is asked runs at once, or not yet."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.ready = True
        self.failure: str | None = None
        self.killed = False

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 0
        return lambda merge: SimpleNamespace(remote=lambda *args: self._merge(merge, args))

    def _merge(self, merge: Any, args: tuple[Any, ...]) -> str:
        self.asked.append(args)
        self.failure = merge(*args)
        return "task"

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        self.ready = self.ready or timeout > 0
        return (tasks, []) if self.ready else ([], tasks)

    def get(self, task: str) -> str | None:
        self.ready = True
        if self.killed:
            import ray

            raise ray.exceptions.WorkerCrashedError
        return self.failure


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> Iterator[Merges]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    merges = Merges()
    for name in ("remote", "wait", "get"):
        monkeypatch.setattr(ray, name, getattr(merges, name))
    yield merges


@pytest.mark.parametrize("compact", [True, False])
def test_small_files_are_merged(
    open_space: Open, stage: Callable[..., Written], merges: Merges, compact: bool
) -> None:
    committer = Committer(open_space(), compact=compact)
    texts = [f"text {i}" for i in range(40)]
    for text in texts:
        committer.take([stage(text)])
        committer.commit(now=True)
    committer.close()
    files = list((folder(open_space()) / "data").glob("*.lance"))
    assert bool(merges.asked) == compact
    assert (len(open_space().refresh().reader.fragments) < 40) == compact
    assert len(files) >= 40  # what was merged is removed an hour later
    assert len(open_space().refresh()) == committer.committed == 40
    assert check_space(open_space()).ok


def test_one_merge_at_a_time(
    open_space: Open, stage: Callable[..., Written], merges: Merges
) -> None:
    committer = Committer(open_space(), compact=True)

    def commit(count: int) -> None:
        for i in range(count):
            committer.take([stage(f"{count} {i}")])
        committer.commit(now=True)

    commit(40)
    asked = len(merges.asked)
    assert asked == 1
    merges.ready = False
    commit(41)
    assert len(merges.asked) == 1
    committer.close()
    assert merges.ready
    commit(42)
    assert len(merges.asked) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_merge_that_fails_ends_nothing(
    open_space: Open,
    stage: Callable[..., Written],
    merges: Merges,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    def fail(*_: Any) -> bool:
        raise OSError("no room")

    monkeypatch.setattr(module, "merge_fragments", fail)
    merges.killed = killed
    committer = Committer(open_space(), compact=True)
    for i in range(40):
        committer.take([stage(f"text {i}")])
        committer.commit(now=True)
    committer.close()
    [said] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert ("is gone: The worker died" if killed else "no room") in said
    assert "This was compaction; what is cached is not affected." in said
    assert len(open_space().refresh()) == 40


def test_a_merge_that_comes_second_is_no_failure(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: Any) -> bool:
        raise OSError("Commit conflict for version 3")

    space = open_space()
    space.add(make_rows(["a"]))
    monkeypatch.setattr(module, "merge_fragments", conflict)
    monkeypatch.setattr(module, "is_conflict", lambda error: True)
    assert module._merge(space.location.uri, {}) is None
