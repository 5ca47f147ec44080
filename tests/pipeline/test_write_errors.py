"""A cache that cannot be written costs nobody their run."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import CacheError, CacheWriteError, EncodeStats
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.pipeline.stats import Watcher
from embcache.store import Database, Space, commits, manifests
from tests.conftest import run_python
from tests.fakes import FakeEngine, fake_vector
from tests.pipeline.test_pipeline import IDENTITY, damage
from tests.spaces import folder, refused

TEXTS = [f"{'word ' * (i % 7)}{i}" for i in range(40)]


def open_space(cache: Path) -> Space:
    database = Database(cache, writable=True)
    # A compaction would mend, or remove, what a test has damaged.
    return database.space(IDENTITY, "name", "fake 1.0", compact_automatically=False)


def small_chunks(space: Space, engine: FakeEngine | None = None, **kwargs: Any) -> Pipeline:
    pipeline = Pipeline(engine or FakeEngine(), IDENTITY, space, **kwargs)
    pipeline.chunker.tokens, pipeline.chunker.adapts = 200, False
    return pipeline


def encode(pipeline: Pipeline, texts: list[str]) -> tuple[np.ndarray, EncodeStats]:
    return pipeline.encode(TextRequest(texts=texts, show_progress=False))


def right(found: np.ndarray, texts: list[str]) -> bool:
    return bool((found == np.stack([fake_vector(text) for text in texts])).all())


def at_chunk(engine: FakeEngine, number: int, do: Callable[[], None]) -> None:
    """Have something happen while a chunk is computed."""
    embed = engine.embed

    def embed_and_do(prompts: Any) -> Any:
        if len(engine.chunks) == number:
            do()
        return embed(prompts)

    engine.embed = embed_and_do  # type: ignore[method-assign]


def replaced_by_a_file(path: Path) -> None:
    """Again, where a commit that is under way has made the folder anew in between."""
    for attempt in range(100):
        if path.is_dir():
            path.rename(path.with_name(f"{path.name} is removed {attempt}"))
        with suppress(IsADirectoryError):
            path.write_text("a file")
            return
    raise AssertionError(f"{path} is made again and again")


def removed(path: Path) -> None:
    """In one step: what is written meanwhile would else be in the way."""
    path.rename(path.with_name(f"{path.name} is removed"))


MEANWHILE: dict[str, Callable[[Space], None]] = {
    "the cache's folder is replaced by a file": lambda s: replaced_by_a_file(folder(s).parent),
    "the space's folder is replaced by a file": lambda s: replaced_by_a_file(folder(s)),
    "the cache's folder is deleted, and a file in its parent's place": lambda s: replaced_by_a_file(
        folder(s).parent.parent
    ),
    "data/ is replaced by a file": lambda s: replaced_by_a_file(folder(s) / "data"),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_is_computed_is_returned_whatever_becomes_of_the_folder(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, engine = open_space(tmp_path / "a" / "cache"), FakeEngine()
    pipeline = small_chunks(space, engine)
    assert right(encode(pipeline, TEXTS[:4])[0], TEXTS[:4])
    at_chunk(engine, len(engine.chunks) + 2, lambda: MEANWHILE[what](space))
    found, stats = encode(pipeline, TEXTS)
    assert right(found, TEXTS)
    assert stats.unwritten and f"{stats.unwritten} not written" in str(stats)
    (said,) = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert str(space.location) in said and "A later call tries to write again" in said


@pytest.mark.parametrize("what", ["the cache", "the space", "its manifests"])
def test_a_folder_that_is_deleted_meanwhile_is_made_again(tmp_path: Path, what: str) -> None:
    """By `rm -r` in another shell: what was a hit is encoded once more, and the rest is kept."""
    space, engine = open_space(tmp_path / "cache"), FakeEngine()
    pipeline = small_chunks(space, engine)
    encode(pipeline, TEXTS[:4])
    gone = {
        "the cache": folder(space).parent,
        "the space": folder(space),
        "its manifests": folder(space) / "_versions",
    }[what]
    at_chunk(engine, len(engine.chunks) + 2, lambda: removed(gone))
    assert right(encode(pipeline, TEXTS)[0], TEXTS)
    found, stats = encode(pipeline, TEXTS)
    assert right(found, TEXTS) and stats.unwritten == 0
    fresh = FakeEngine()
    assert right(encode(small_chunks(open_space(tmp_path / "cache"), fresh), TEXTS)[0], TEXTS)
    assert fresh.starts == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_is_deleted_during_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """Rows that it took along are written once more, to the table that is made again."""
    space, engine = open_space(tmp_path / "cache"), FakeEngine()
    pipeline = small_chunks(space, engine)
    encode(pipeline, TEXTS[:4])
    append, calls = commits.append, []

    def append_and_lose(location: Any, *args: Any) -> Any:
        calls.append(location)
        if len(calls) != 2:
            return append(location, *args)
        if when == "before":
            removed(folder(space))
            raise OSError("failed to persist temp file: No such file or directory (os error 2)")
        done = append(location, *args)
        removed(folder(space))
        return done

    monkeypatch.setattr(commits, "append", append_and_lose)
    found, stats = encode(pipeline, TEXTS)
    assert right(found, TEXTS) and stats.unwritten == 0 and not caplog.records
    fresh = FakeEngine()
    assert right(encode(small_chunks(open_space(tmp_path / "cache"), fresh), TEXTS)[0], TEXTS)
    assert fresh.starts == 0


def test_a_folder_that_is_deleted_time_and_again_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = open_space(tmp_path / "cache")
    append = commits.append

    def append_and_lose(location: Any, *args: Any) -> Any:
        done = append(location, *args)
        shutil.rmtree(folder(space))
        return done

    monkeypatch.setattr(commits, "append", append_and_lose)
    found, stats = encode(small_chunks(space), TEXTS)
    assert right(found, TEXTS) and stats.unwritten == len(TEXTS)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "40 of 40 texts" in said and "was removed meanwhile" in said


def test_a_later_call_tries_again_and_the_warning_comes_once(
    shared_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = open_space(shared_folder)
    encode(small_chunks(space), TEXTS[:4])
    folders = [path for path in folder(space).rglob("*") if path.is_dir()]
    engine = FakeEngine()
    pipeline = small_chunks(space, engine)
    with refused(*folders):
        for start in (4, 8, 12):
            found, stats = encode(pipeline, TEXTS[: start + 4])
            assert right(found, TEXTS[: start + 4]) and stats.unwritten == start
    (said,) = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert "4 of 4 texts that were not cached are returned, but not kept" in said
    assert "Permission denied" in said and 'on_write_error="raise"' in said
    assert encode(pipeline, TEXTS[:8])[1].unwritten == 0
    caplog.clear()
    with refused(*folders):
        encode(pipeline, TEXTS)
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 1
    fresh = FakeEngine()
    encode(small_chunks(open_space(shared_folder), fresh), TEXTS[:8])
    assert fresh.starts == 0


def test_a_disk_that_takes_a_little_in_each_call_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = open_space(tmp_path)
    pipeline = small_chunks(space)
    add, room = Space.add, [1]

    def add_a_little(self: Space, rows: Any) -> Any:
        if self is space:
            if not room[0]:
                raise CacheWriteError("Writing failed: no space left")
            room[0] -= 1
        return add(self, rows)

    monkeypatch.setattr(Space, "add", add_a_little)
    for start in range(0, 40, 10):
        room[0] = 1
        texts = [f"{text} {start}" for text in TEXTS]
        found, stats = encode(pipeline, texts)
        assert right(found, texts) and 0 < stats.unwritten < len(texts)
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 1
    room[0] = 100
    with caplog.at_level(logging.INFO):
        assert encode(pipeline, TEXTS)[1].unwritten == 0
    assert "is written again" in caplog.text
    room[0] = 0
    encode(pipeline, [f"{text} more" for text in TEXTS])
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_whatever_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Said in the system's words, before the engine starts; the vectors are returned."""

    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    space = open_space(tmp_path)
    found, stats = encode(small_chunks(space), TEXTS)
    assert right(found, TEXTS) and stats.unwritten == len(TEXTS)
    assert os.strerror(number) in caplog.text and not folder(space).exists()


def test_a_folder_that_cannot_even_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of file handles, say, in the middle of a call: what is computed is returned."""
    space, engine = open_space(tmp_path), FakeEngine()
    pipeline = small_chunks(space, engine)

    def look(_: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    at_chunk(engine, 0, lambda: monkeypatch.setattr(manifests, "has_manifest", look))
    at_chunk(engine, 2, monkeypatch.undo)
    found, stats = encode(pipeline, TEXTS)
    assert right(found, TEXTS) and stats.unwritten == len(TEXTS)
    (said,) = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert "cannot be looked into: Too many open files" in said and "ulimit -n" in said


def test_a_commit_that_conflicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lance gives up a commit that others came before too often."""
    space = open_space(tmp_path)
    add, calls = Space.add, []

    def conflict(self: Space, rows: Any) -> Any:
        if self is space:
            calls.append(len(rows))
            if len(calls) == 3:
                raise CacheWriteError("Writing failed: too many concurrent writers")
        return add(self, rows)

    monkeypatch.setattr(Space, "add", conflict)
    found, stats = encode(small_chunks(space), TEXTS)
    written = len(space.refresh())
    assert right(found, TEXTS) and stats.unwritten == len(TEXTS) - written > 0
    assert f"but not kept; {written} are." in caplog.text
    monkeypatch.undo()
    assert encode(small_chunks(space), TEXTS)[1].encoded == stats.unwritten
    assert len(space.refresh()) == len(TEXTS)


def test_raise_ends_the_run_and_so_does_every_fill(tmp_path: Path) -> None:
    space, engine = open_space(tmp_path / "cache"), FakeEngine()
    at_chunk(engine, 2, lambda: replaced_by_a_file(folder(space)))
    with pytest.raises(CacheWriteError, match=r"Writing to .* failed: "):
        encode(small_chunks(space, engine, on_write_error="raise"), TEXTS)
    request = TextRequest(texts=TEXTS, show_progress=False)
    keys = request.keys(IDENTITY.to_bytes())
    with pytest.raises(CacheError, match=r"Nothing can be committed to|Not a directory"):
        small_chunks(space).fill(request, keys, watcher=Watcher(), refuse={}.update)


def test_damaged_rows_that_cannot_be_dropped(
    shared_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are encoded again in each call, until they can be."""
    space = open_space(shared_folder)
    encode(small_chunks(space), TEXTS)
    damage(space, TEXTS[3])
    engine = FakeEngine()
    with refused(*(path for path in folder(space).rglob("*") if path.is_dir())):
        pipeline = small_chunks(space, engine)
        for _ in range(2):
            assert right(encode(pipeline, TEXTS)[0], TEXTS)
    assert engine.encoded == [TEXTS[3]] * 2 and "They are left there" in caplog.text
    assert encode(pipeline, TEXTS)[1].unwritten == 0
    assert encode(pipeline, TEXTS)[1].encoded == 0


def test_rows_that_are_damaged_as_soon_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing disk: after the second time they stay in memory."""
    space = open_space(tmp_path)
    add = Space.add

    def add_and_damage(self: Space, rows: Any) -> Any:
        add(self, rows)
        if self is space:
            damage(space, "a")
        return self.refresh()

    monkeypatch.setattr(Space, "add", add_and_damage)
    found, stats = encode(small_chunks(space), ["a", "b"])
    assert right(found, ["a", "b"]) and stats.unwritten == 1
    assert "fail their checksum. The disk or its memory is failing" in caplog.text


@pytest.mark.slow
def test_a_file_size_limit_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A real refusal by the system, in the middle of a run: EFBIG, as of a full disk."""
    said = run_python(
        "import logging, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.pipeline.test_write_errors import *\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        f"space, engine = open_space(Path({str(tmp_path)!r})), FakeEngine()\n"
        "pipeline = small_chunks(space, engine)\n"
        "encode(pipeline, TEXTS[:4])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "at_chunk(engine, len(engine.chunks) + 2, limit)\n"
        "found, stats = encode(pipeline, TEXTS)\n"
        "print(right(found, TEXTS), stats.unwritten > 0)\n"
    )
    assert "True True" in said and "File too large" in said and "cannot be written" in said


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real one, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=300k none {disk} 2>/dev/null"):
        pytest.skip("no right to mount a small disk")
    try:
        space = open_space(disk)
        pipeline = small_chunks(space, FakeEngine(dim=512))
        texts = [f"{'word ' * (i % 7)}{i}" for i in range(300)]
        with caplog.at_level(logging.WARNING):
            found, stats = encode(pipeline, texts)
        assert (found == np.stack([fake_vector(text, 512) for text in texts])).all()
        assert 0 < stats.unwritten < 300 and "No space left on device" in caplog.text
        (disk / "cache").mkdir(exist_ok=True)
        again, stats = encode(pipeline, texts)
        assert (again == found).all() and stats.hits
    finally:
        os.system(f"umount -l {disk}")  # pins of versions keep files open
