"""Merging against dicts; interrupted, repeated, with damage, from two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import CacheError, ConfigError, LanceCache
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Database, Location, Rows, Space
from embcache.tools.check import check_space
from embcache.tools.merge import merge_caches
from tests.conftest import ROOT
from tests.spaces import IDENTITY, add_blindly, folder, make_rows, read_all, refused
from tests.store.test_damage import data_files, flip_bit

OTHER = Identity("another", "1", "float32")
names = st.lists(st.integers(0, 20).map(str), max_size=8)


def space_in(cache: Path | Location, identity: Identity = IDENTITY, **kwargs: Any) -> Space:
    space = Database(cache, writable=True).space(identity, identity.model, "vllm 1.0", **kwargs)
    return space


def rows_of(vectors: dict[str, float], identity: Identity = IDENTITY) -> Rows:
    texts = list(vectors)
    values = np.array([[vectors[text], 1, 2] for text in texts], np.float32)
    keys = text_keys(identity.to_bytes(), "", texts)
    return Rows(keys, values, {"text": texts, "prompt": ""})


def contents(space: Space, texts: list[str]) -> dict[str, float]:
    """What the space says of each text, read as embcache reads it."""
    snapshot = space.refresh()
    keys = text_keys(space.identity.to_bytes(), "", texts)
    there = np.flatnonzero(snapshot.find(keys) >= 0)
    if not len(there):
        return {}
    values, damaged = snapshot.read_all(snapshot.find(keys[there]), keys[there])
    assert not damaged.any()
    return {texts[row]: float(value) for row, value in zip(there, values[:, 0], strict=True)}


@settings(max_examples=25, deadline=None)
@given(st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_merging_is_the_union_of_dicts(source: list[list[str]], target: list[list[str]]) -> None:
    every = [str(i) for i in range(21)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        models: list[dict[str, float]] = [{}, {}]
        spaces = [space_in(Path(folder) / name) for name in "ab"]
        counter = 0.0
        for model, space, chunks in zip(models, spaces, (source, target), strict=True):
            for chunk in chunks:
                counter += 1
                if chunk:  # texts occur twice, in a chunk and in several
                    space.add(rows_of(dict.fromkeys(chunk, counter)))
                for text in chunk:
                    model.setdefault(text, counter)
        union = {**models[0], **models[1]}
        for added in (len(union) - len(models[1]), 0):
            report = merge_caches(Path(folder) / "a", Path(folder) / "b")
            assert report.added == added and report.lost == 0
            assert contents(spaces[1], every) == union
            assert contents(spaces[0], every) == models[0]


def test_all_columns_and_the_metadata_come_along(tmp_path: Path) -> None:
    space = space_in(tmp_path / "a")
    space.add(make_rows(["a", "b"]))
    report = merge_caches(tmp_path / "a", tmp_path / "new")
    assert str(report) == f"{space.name}: 2 of 2 rows added, 0 there already"
    tables = [
        lance.dataset(str(tmp_path / cache / folder(space).name)).to_table()
        for cache in ("a", "new")
    ]
    assert tables[0].equals(tables[1], check_metadata=True)


def test_stable_row_ids_in_the_new_space(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a", "b"]))
    merge_caches(tmp_path / "a", tmp_path / "b")
    space = space_in(tmp_path / "b")
    assert lance.dataset(str(folder(space))).has_stable_row_ids


def test_several_spaces_and_scores(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a", "b"]))
    space_in(tmp_path / "a", OTHER).add(make_rows(["a"], dim=4, identity=OTHER))
    scoring = Identity("scoring", "1", "float32")
    keys = pair_keys(scoring.to_bytes(), ("", ""), ["q", "r"], ["d", "e"])
    columns = {"query": ["q", "r"], "document": ["d", "e"]}
    scores = Rows(keys, np.array([[1.0], [2.0]], np.float32), columns)
    space_in(tmp_path / "a", scoring, layout=SCORES).add(scores)
    space_in(tmp_path / "b", OTHER).add(make_rows(["z"], dim=4, identity=OTHER))
    report = merge_caches(tmp_path / "a", tmp_path / "b")
    assert {s.name.split("--")[0]: s.added for s in report.spaces} == {
        "organization": 2,
        "another": 1,
        "scoring": 2,
    }
    merged = space_in(tmp_path / "b", scoring)
    assert merged.layout is SCORES
    assert (read_all(merged, scores)[0] == scores.values).all()


def test_texts_only_where_the_target_stores_them(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["secret"]))
    space_in(tmp_path / "b", store_text=False).add(make_rows(["hidden"]))
    merge_caches(tmp_path / "a", tmp_path / "b")
    space = space_in(tmp_path / "b")
    assert "text" not in space.refresh().columns and len(space.refresh()) == 2
    merge_caches(tmp_path / "b", tmp_path / "a")
    table = lance.dataset(str(tmp_path / "a" / folder(space).name)).to_table()
    assert table["text"].to_pylist() == ["secret", None]
    merge_caches(tmp_path / "b", tmp_path / "c")  # a new space has no more than the source
    assert "text" not in space_in(tmp_path / "c").refresh().columns


def test_damaged_rows_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, rows = space_in(tmp_path / "a"), make_rows([f"{i}" for i in range(50)], dim=32)
    space.add(rows)
    (path,) = data_files(space)
    for row in (3, 7):
        flip_bit(path, path.read_bytes().index(rows.values[row].tobytes()) + 9, 2)
    duplicate = make_rows(["7"], dim=32, seed=5)
    add_blindly(space, duplicate)  # intact, so it stands in for the damaged one
    report = merge_caches(tmp_path / "a", tmp_path / "b")
    assert (report.added, report.lost) == (49, 2)
    assert "2 rows of" in caplog.text and "2 damaged or unreadable, left out" in str(report)
    merged = space_in(tmp_path / "b")
    assert check_space(merged).ok
    assert np.flatnonzero(merged.refresh().find(rows.keys) < 0).tolist() == [3]
    assert (read_all(merged, duplicate)[0] == duplicate.values).all()


def test_a_text_that_is_not_its_keys_does_not_spread(tmp_path: Path) -> None:
    source = space_in(tmp_path / "a")
    source.add(make_rows(["elephant", "b"]))
    (path,) = data_files(source)
    flip_bit(path, path.read_bytes().index(b"elephant") + 2, bit=1)
    (report,) = merge_caches(tmp_path / "a", tmp_path / "b").spaces
    assert (report.added, report.lost) == (1, 1)
    assert check_space(space_in(tmp_path / "b")).ok


def test_other_files_of_a_space_with_a_truncated_one_are_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = space_in(tmp_path / "a")
    for part in range(3):
        space.add(make_rows([f"{part} {i}" for i in range(100)], dim=16, seed=part))
    broken = data_files(space)[0]
    broken.write_bytes(broken.read_bytes()[:500])
    report = merge_caches(tmp_path / "a", tmp_path / "b")
    assert (report.added, report.lost) == (200, 100)
    assert "100 rows of" in caplog.text
    assert check_space(space_in(tmp_path / "b")).ok


def test_rows_whose_texts_cannot_be_read_come_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, rows = space_in(tmp_path / "a"), make_rows([f"text number {i}" for i in range(100)])
    space.add(rows)
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"text number 7"), 7)  # no UTF-8 any more
    assert merge_caches(tmp_path / "a", tmp_path / "b").added == 100
    assert "Some columns cannot be read" in caplog.text and path.name in caplog.text
    merged = space_in(tmp_path / "b")
    assert (read_all(merged, rows)[0] == rows.values).all()


def test_a_space_that_cannot_be_opened_does_not_stop_the_others(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a"]))
    broken = space_in(tmp_path / "a", OTHER)
    broken.add(make_rows(["a"], identity=OTHER))
    for manifest in (folder(broken) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    report = merge_caches(tmp_path / "a", tmp_path / "b")
    assert report.added == 1 and len(report.failed) == 1
    assert f"left out: Opening {folder(broken)} failed" in str(report)


def test_other_dimensions_are_an_error_and_nothing_is_merged(tmp_path: Path) -> None:
    space_in(tmp_path / "a", OTHER).add(make_rows(["a"], identity=OTHER))
    space_in(tmp_path / "a").add(make_rows(["a"], dim=8))
    space_in(tmp_path / "b").add(make_rows(["b"], dim=9))
    message = r"vectors of 8 components and .* vectors of 9, under one identity"
    with pytest.raises(CacheError, match=message):
        merge_caches(tmp_path / "a", tmp_path / "b")
    assert len(list((tmp_path / "b").glob("*.lance"))) == 1


def test_tables_of_lance_cache_are_refused(tmp_path: Path) -> None:
    """Two models' vectors would meet under the same keys."""
    for name in "ab":
        cache = LanceCache(tmp_path / name)
        cache.add([{"text": name}], np.ones((1, 2), np.float32))
        cache.save()
    with pytest.raises(ConfigError, match="was written by LanceCache"):
        merge_caches(tmp_path / "a", tmp_path / "b")
    assert {"text": "a"} not in LanceCache(tmp_path / "b")


def test_with_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="is both the source and the target"):
        merge_caches(tmp_path / "a", tmp_path / "link")


def test_no_source_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        merge_caches(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").mkdir()
    assert str(merge_caches(tmp_path / "a", tmp_path / "b")) == "The source has no spaces."


WRITER = """
import sys
from embcache.store import Database
from tests.spaces import IDENTITY, make_rows  # not tests.conftest: that imports torch
space = Database(sys.argv[1], writable=True).space(IDENTITY, IDENTITY.model, "vllm 1.0")
for part in range(5):
    space.add(make_rows([f"{i}" for i in range(int(sys.argv[2]) + 100 * part)][-300:], dim=8))
"""
MERGER = """
import sys
from embcache.tools.merge import merge_caches
print("ready", flush=True)
merge_caches(*sys.argv[1:])
print("done", flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_caches_of_two_processes(tmp_path: Path) -> None:
    processes = [
        start(WRITER, tmp_path / cache, first) for cache, first in (("a", 300), ("b", 500))
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    # Two merge the same at once: duplicates, if any, are harmless.
    mergers = [start(MERGER, tmp_path / "a", tmp_path / "b") for _ in range(2)]
    assert [process.wait(120) for process in mergers] == [0, 0]
    merged = space_in(tmp_path / "b")
    keys = make_rows([f"{i}" for i in range(900)], dim=8).keys
    assert (merged.refresh().find(keys) >= 0).all()
    assert check_space(merged).ok
    assert merge_caches(tmp_path / "a", tmp_path / "b").added == 0


@pytest.mark.slow
def test_a_kill_in_the_middle_loses_the_chunk_in_flight_at_most(tmp_path: Path) -> None:
    source = space_in(tmp_path / "a")
    rows = make_rows([f"text {i}" for i in range(100_000)], dim=16)
    source.add(rows)
    merger = start(MERGER, tmp_path / "a", tmp_path / "b")
    target = space_in(tmp_path / "b")
    while not len(target.refresh()) and merger.poll() is None:
        pass
    merger.send_signal(signal.SIGKILL)
    merger.wait()
    there = len(target.refresh())
    assert 0 < there < 100_000, "the kill was too early or too late"
    assert there % 12_288 == 0  # three batches a chunk
    report = merge_caches(tmp_path / "a", tmp_path / "b")
    assert report.added == 100_000 - there
    vectors, failed = read_all(space_in(tmp_path / "b"), rows)
    assert not failed.any() and vectors.tobytes() == rows.values.tobytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    """Rows of 1 kB: 250 MB more of them take far less than that."""
    peak = (
        "import sys; from embcache.tools.merge import merge_caches; import lancedb\n"
        "merge_caches(*sys.argv[1:])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    source = space_in(tmp_path / "a")
    for part in range(6):
        texts = [f"{part} {i}" for i in range(50_000)]
        source.add(make_rows(texts, dim=256, seed=part))
        if part in (0, 5):
            process = start(peak, tmp_path / "a", tmp_path / f"b{part}")
            peaks.append(int(process.communicate(timeout=120)[0]))
    assert len(space_in(tmp_path / "b5").refresh()) == 300_000
    assert peaks[1] - peaks[0] < 170_000, peaks  # kB


def test_a_target_that_cannot_be_written_is_found_out_before_anything_is_merged(
    shared_folder: Path,
) -> None:
    """Of two spaces the first can be written, the second is another user's."""
    for identity in (IDENTITY, OTHER):
        space_in(shared_folder / "a", identity).add(rows_of({"new": 1}, identity))
    target = shared_folder / "b"
    target.mkdir()
    mine, theirs = (space_in(target, identity) for identity in (OTHER, IDENTITY))
    assert mine.name < theirs.name
    for space in (mine, theirs):
        space.add(rows_of({"old": 2}, space.identity))
    for path in (target, *target.rglob("*")):
        path.chmod(0o777)
    with (
        refused(*(folder(theirs) / name for name in ("data", "_transactions", "_versions"))),
        pytest.raises(CacheError, match=f"{theirs.name}.*writing a file is refused"),
    ):
        merge_caches(shared_folder / "a", target)
    assert len(mine.refresh()) == len(theirs.refresh()) == 1
