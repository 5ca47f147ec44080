"""What is copied, and what is read for it: interrupted, repeated, filtered, with damage."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import Cache, CacheError, ConfigError, LanceCache
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.store import SCORES, Location, Reader, Rows, Space
from embcache.tools.check import check_space
from embcache.tools.transfer import TransferProgress, transfer
from tests.object_store import ObjectStore, Remote
from tests.spaces import IDENTITY, add_blindly, folder, make_rows, read_all
from tests.store.test_damage import data_files, flip_bit
from tests.tools.test_merge import OTHER, space_in

PROMPTS = ("query: ", "passage: ")


class Spy:
    """What is read at the source: how many rows, of which columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
        self.takes: list[tuple[int, list[str]]] = []
        take = Reader.take

        def counted(reader: Reader, positions: Any, columns: Sequence[str]) -> Any:
            if reader.location.parent.uri == str(source):
                self.takes.append((len(positions), list(columns)))
            return take(reader, positions, columns)

        monkeypatch.setattr(Reader, "take", counted)

    def rows(self, column: str = "vector") -> int:
        return sum(count for count, columns in self.takes if column in columns)

    def columns(self) -> set[str]:
        return {name for _, columns in self.takes for name in columns}


def prompted(texts: list[str], seed: int = 0, identity: Identity = IDENTITY) -> Rows:
    """Rows with one of two prompts, in turn."""
    prompts = [PROMPTS[at % 2] for at in range(len(texts))]
    keys = np.concatenate(
        [
            text_keys(identity.to_bytes(), prompt, [text])
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    )
    values = np.random.default_rng(seed).standard_normal((len(texts), 8)).astype(np.float32)
    return Rows(keys, values, {"text": texts, "prompt": prompts})


def scored(identity: Identity = OTHER) -> Rows:
    queries, documents = ["red", "green"], ["apple", "pear"]
    keys = pair_keys(identity.to_bytes(), ("", ""), queries, documents)
    columns = {
        "query": queries, "document": documents, "query_prefix": "", "document_prefix": "",
    }  # fmt: skip
    return Rows(keys, np.array([[1.0], [2.0]], np.float32), columns)


def equal(space: Space, rows: Rows) -> bool:
    values, damaged = read_all(space, rows)
    return not damaged.any() and values.tobytes() == rows.values.tobytes()


def columns_of(space: Space) -> dict[bytes, dict[str, Any]]:
    rows = lance.dataset(str(space.location)).to_table().to_pylist()
    return {row["key"]: row for row in rows}


texts = st.sets(st.integers(0, 40).map(str), min_size=1)


@settings(max_examples=20, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), texts, texts, st.sampled_from([None, *PROMPTS]))
def test_the_target_gets_the_bits_of_what_it_lacks(
    chunks: list[set[str]], deleted: set[str], there: set[str], prompt: str | None
) -> None:
    """Of a source with several files, some of their rows deleted, and a target with some."""
    every = prompted([str(i) for i in range(41)])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        source, target = (space_in(Path(made) / name) for name in "ab")
        for chunk in chunks:
            source.add(every.take(np.array(sorted(map(int, chunk)))))
        source.drop(every.keys[sorted(map(int, deleted))])
        target.add(every.take(np.array(sorted(map(int, there)))))
        held = {int(text) for chunk in chunks for text in chunk - deleted}
        fits = {row for row in held if prompt in (None, PROMPTS[row % 2])}
        old, lacking = {int(text) for text in there}, fits - {int(text) for text in there}
        for added in (len(lacking), 0):
            report = transfer(Path(made) / "a", Path(made) / "b", prompt=prompt)
            (space,) = report.spaces
            assert (space.added, space.lost, space.duplicates) == (added, 0, 0)
            assert space.rows == len(held) == added + space.present + space.unfit
        assert set(columns_of(target)) == {
            every.keys[r].astype(">u8").tobytes() for r in old | fits
        }
        rows = sorted(old | fits)
        assert equal(target, every.take(np.array(rows)))
        of_source, of_target = columns_of(source), columns_of(target)
        new = [every.keys[row].astype(">u8").tobytes() for row in lacking]
        assert all(of_source[key] == of_target[key] for key in new)


def test_only_what_is_missing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows([f"{i}" for i in range(1000)])
    source = space_in(tmp_path / "a")
    for part in range(2):
        source.add(rows.take(np.arange(500 * part, 500 * part + 500)))
    space_in(tmp_path / "b").add(rows.take(np.arange(0, 900)))
    spy = Spy(monkeypatch, tmp_path / "a")
    (space,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert (space.rows, space.added, space.present) == (1000, 100, 900)
    assert spy.rows() == 100
    assert equal(space_in(tmp_path / "b"), rows)
    spy.takes.clear()
    assert transfer(tmp_path / "a", tmp_path / "b").added == 0
    assert not spy.takes


def test_a_file_costs_the_bytes_of_its_missing_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([f"{i}" for i in range(2000)], dim=256)
    space_in(tmp_path / "a").add(rows)
    space_in(tmp_path / "b").add(rows.take(np.r_[0:500, 600:2000]))
    readers: list[Reader] = []
    open_ = Space.open

    def kept(space: Space, version: int | None = None) -> Reader:
        reader = open_(space, version)
        if space.location.parent.uri == str(tmp_path / "a"):
            readers.append(reader)
        return reader

    monkeypatch.setattr(Space, "open", kept)
    assert transfer(tmp_path / "a", tmp_path / "b").added == 100
    read = readers[0].dataset.io_stats_snapshot()
    assert 100 * 256 * 4 < read.read_bytes < 300_000  # of 2 MB
    assert read.read_iops < 60


def test_a_filter_reads_its_own_columns_of_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prompted([f"{i}" for i in range(100)])
    space_in(tmp_path / "a").add(rows)
    space_in(tmp_path / "b").add(rows.take(np.arange(20)))
    spy = Spy(monkeypatch, tmp_path / "a")
    (space,) = transfer(tmp_path / "a", tmp_path / "b", prompt="query: ").spaces
    assert (space.added, space.present, space.unfit) == (40, 20, 40)
    assert [count for count, columns in spy.takes if columns == ["prompt"]] == [80]
    assert spy.rows() == 40
    spy.takes.clear()
    (space,) = transfer(tmp_path / "a", tmp_path / "b", contains="no text has this").spaces
    assert (space.added, space.present, space.unfit) == (0, 60, 40)
    assert [columns for _, columns in spy.takes] == [["text"]]
    assert str(space) == f"{space.name}: 0 of 100 rows added, 60 there already, 40 not asked for"


def test_text_filters_of_scores(tmp_path: Path) -> None:
    source = space_in(tmp_path / "a", OTHER, layout=SCORES)
    source.add(scored())
    assert transfer(tmp_path / "a", tmp_path / "b", contains="pear").added == 1
    assert transfer(tmp_path / "a", tmp_path / "b", contains="red").added == 1
    assert equal(space_in(tmp_path / "b", OTHER, layout=SCORES), scored())


def test_spaces_by_name(tmp_path: Path) -> None:
    for identity in (IDENTITY, OTHER):
        space_in(tmp_path / "a", identity).add(make_rows(["x", "y"], identity=identity))
    report = transfer(tmp_path / "a", tmp_path / "b", "another")
    assert [space.name.split("--")[0] for space in report.spaces] == ["another"]
    assert (
        transfer(tmp_path / "a", tmp_path / "b", ["another", "organization", "another"]).added == 2
    )
    with pytest.raises(ConfigError, match="is called 'none'"):
        transfer(tmp_path / "a", tmp_path / "c", ["none"])
    with pytest.raises(ConfigError, match=r"is no space of .*/b, which is to be copied from"):
        transfer(tmp_path / "b", tmp_path / "c", [str(space_in(tmp_path / "a").location)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embcache.tools.append._CHUNK_ROWS", 100)
    monkeypatch.setattr("embcache.store.reader._BATCH_ROWS", 50)


@pytest.mark.usefixtures("small_chunks")
def test_what_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows([f"{i}" for i in range(1000)])
    space_in(tmp_path / "a").add(rows)

    def interrupt(done: TransferProgress) -> None:
        if done.rows >= 450:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(tmp_path / "a", tmp_path / "b", progress=interrupt)
    target = space_in(tmp_path / "b")
    assert len(target.refresh()) == 400
    spy = Spy(monkeypatch, tmp_path / "a")
    (space,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert (space.added, space.present) == (600, 400)
    assert spy.rows() == 600
    assert equal(target, rows) and check_space(target).duplicates == 0


@pytest.mark.usefixtures("small_chunks")
def test_a_source_that_goes_away_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken for lost: what was committed stays, and the next run goes on."""
    rows = make_rows([f"{i}" for i in range(1000)])
    space_in(tmp_path / "a").add(rows)
    take, calls = Reader.take, []

    def fail(reader: Reader, positions: Any, columns: Any) -> Any:
        calls.append(1)
        if len(calls) > 8:
            raise CacheError("The store does not answer.")
        return take(reader, positions, columns)

    with monkeypatch.context() as patched, pytest.raises(CacheError, match="does not answer"):
        patched.setattr(Reader, "take", fail)
        transfer(tmp_path / "a", tmp_path / "b")
    there = len(space_in(tmp_path / "b").refresh())
    assert 0 < there < 1000
    assert transfer(tmp_path / "a", tmp_path / "b").added == 1000 - there
    assert equal(space_in(tmp_path / "b"), rows)


@pytest.mark.usefixtures("small_chunks")
def test_progress(tmp_path: Path) -> None:
    space = space_in(tmp_path / "a")
    space.add(make_rows([f"{i}" for i in range(120)]))
    seen: list[TransferProgress] = []
    (report,) = transfer(tmp_path / "a", tmp_path / "b", progress=seen.append).spaces
    assert [(done.rows, done.total) for done in seen] == [(50, 120), (100, 120), (120, 120)]
    assert {done.name for done in seen} == {space.name}
    assert seen[-1].size == report.size > 120 * 8 * 4


def test_a_damaged_row_is_left_out_and_one_that_is_there_already_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, rows = space_in(tmp_path / "a"), make_rows([f"{i}" for i in range(50)], dim=32)
    source.add(rows)
    (path,) = data_files(source)
    for row in (3, 7, 9):
        flip_bit(path, path.read_bytes().index(rows.values[row].tobytes()) + 9, 2)
    for seed in (5, 6):  # in place of the damaged row: the one that was committed first
        add_blindly(source, make_rows(["7"], dim=32, seed=seed))
    space_in(tmp_path / "b").add(rows.take(np.array([9])))
    (space,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert (space.added, space.present, space.duplicates, space.lost) == (48, 1, 2, 2)
    assert "2 rows of" in caplog.text
    target = space_in(tmp_path / "b")
    assert check_space(target).ok
    assert np.flatnonzero(target.refresh().find(rows.keys) < 0).tolist() == [3]
    assert equal(target, make_rows(["7"], dim=32, seed=5))


def test_of_duplicates_the_row_that_was_committed_first(tmp_path: Path) -> None:
    """Also where Lance has written it into a later file than its duplicate."""
    source, first = space_in(tmp_path / "a", compact_automatically=False), make_rows(["7"])
    for part in range(3):
        source.add(make_rows([f"{part} {i}" for i in range(10)]))
    source.add(first)
    add_blindly(source, make_rows(["7"], seed=5))
    source.optimize(timedelta(hours=1))  # merges only, as a writer does in the background
    (space,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert (space.added, space.duplicates) == (31, 1)
    assert equal(space_in(tmp_path / "b"), first)


def test_what_a_filter_cannot_read_is_lost_not_unfit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = space_in(tmp_path / "a")
    space.add(make_rows([f"text number {i}" for i in range(100)]))
    space.add(make_rows([f"more {i}" for i in range(10)]))
    path = next(path for path in data_files(space) if b"text number 7" in path.read_bytes())
    flip_bit(path, path.read_bytes().index(b"text number 7"), 7)  # no UTF-8 any more
    (report,) = transfer(tmp_path / "a", tmp_path / "b", contains="5").spaces
    assert (report.added, report.unfit, report.lost) == (1, 9, 100)
    assert "What rows are meant cannot be read" in caplog.text and path.name in caplog.text


def with_canaries(cache: Path, seed: int, **kwargs: Any) -> Space:
    space = space_in(cache, **kwargs)
    space.add(make_rows([f"row {seed}"]))
    space.canaries.add(make_rows(["canary 1", "canary 2"], seed=seed))
    return space


def test_canaries_come_along_where_there_are_none(tmp_path: Path) -> None:
    with_canaries(tmp_path / "a", 1)
    (report,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert report.canaries == 2
    canaries = make_rows(["canary 1", "canary 2"], seed=1)
    assert equal(space_in(tmp_path / "b").canaries, canaries)
    space_in(tmp_path / "c").add(make_rows(["row 2"]))
    space_in(tmp_path / "c").canaries.add(make_rows([f"canary {n}" for n in (1, 2, 3)], seed=1))
    (report,) = transfer(tmp_path / "c", tmp_path / "b").spaces
    assert (report.added, report.canaries) == (1, 0)
    assert equal(space_in(tmp_path / "b").canaries, canaries)
    assert check_space(space_in(tmp_path / "b")).ok


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    with_canaries(tmp_path / "a", 1)
    with_canaries(tmp_path / "b", 2)
    space_in(tmp_path / "a", OTHER).add(make_rows(["x"], identity=OTHER))
    with pytest.raises(CacheError, match=r"2 of 2 canaries differ from those of .*/b/.* cosine"):
        transfer(tmp_path / "a", tmp_path / "b")
    assert len(space_in(tmp_path / "b").refresh()) == 1
    assert transfer(tmp_path / "a", tmp_path / "b", OTHER.fingerprint()).added == 1


def test_no_canaries_without_rows_nor_from_other_keys(tmp_path: Path) -> None:
    with_canaries(tmp_path / "a", 1)
    (report,) = transfer(tmp_path / "a", tmp_path / "b", contains="nothing").spaces
    assert report.canaries == 0 and not list((tmp_path / "b").iterdir())
    space_in(tmp_path / "c", store_text=False).add(make_rows(["hidden"]))
    (report,) = transfer(tmp_path / "a", tmp_path / "c").spaces
    assert (report.added, report.canaries) == (1, 0)


def test_damaged_canaries_cost_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = with_canaries(tmp_path / "a", 1)
    for manifest in (folder(space.canaries) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    (report,) = transfer(tmp_path / "a", tmp_path / "b").spaces
    assert (report.added, report.canaries) == (1, 0)
    assert f"The canaries of {space.location} are not copied" in caplog.text


def test_no_texts_at_the_source(tmp_path: Path) -> None:
    rows = make_rows(["a", "b"])
    space_in(tmp_path / "a", store_text=False).add(rows)
    message = r"organization.*prompt='p: ': the space has no column .* name other spaces only"
    with pytest.raises(ConfigError, match=message):
        transfer(tmp_path / "a", tmp_path / "b", prompt="p: ")
    assert not (tmp_path / "b").exists()
    assert transfer(tmp_path / "a", tmp_path / "b").added == 2
    assert equal(space_in(tmp_path / "b"), rows)


def test_a_space_that_cannot_be_opened_does_not_stop_the_others(tmp_path: Path) -> None:
    space_in(tmp_path / "a").add(make_rows(["a"]))
    broken = space_in(tmp_path / "a", OTHER)
    broken.add(make_rows(["a"], identity=OTHER))
    for manifest in (folder(broken) / "_versions").iterdir():
        manifest.write_bytes(b"\xff" * 100)
    report = transfer(tmp_path / "a", tmp_path / "b")
    assert report.added == 1 and len(report.failed) == 1
    assert f"left out: Opening {folder(broken)} failed" in str(report)


def test_other_dimensions_are_an_error_and_nothing_is_copied(tmp_path: Path) -> None:
    space_in(tmp_path / "a", OTHER).add(make_rows(["a"], identity=OTHER))
    space_in(tmp_path / "a").add(make_rows(["a"], dim=8))
    space_in(tmp_path / "b").add(make_rows(["b"], dim=9))
    with pytest.raises(
        CacheError, match=r"vectors of 8 components and .* of 9, under one identity"
    ):
        transfer(tmp_path / "a", tmp_path / "b")
    assert len(list((tmp_path / "b").glob("*.lance"))) == 1


def test_a_table_of_lance_cache_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path / "a")
    cache.add([{"text": "a"}], np.ones((1, 2), np.float32))
    cache.save()
    space_in(tmp_path / "a").add(make_rows(["a"]))
    with pytest.raises(ConfigError, match=r"written by LanceCache.* or name the other spaces"):
        transfer(tmp_path / "a", tmp_path / "b")
    assert transfer(tmp_path / "a", tmp_path / "b", "organization").added == 1


def test_one_cache_no_cache_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="/a does not exist: there is nothing to copy from"):
        transfer(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="is both the source and the target"):
        transfer(tmp_path / "a", tmp_path / "link")
    assert str(transfer(tmp_path / "a", tmp_path / "b")) == "The source has no spaces."


def test_from_python(tmp_path: Path) -> None:
    rows = prompted(["a", "b", "c", "d"])
    space_in(tmp_path / "a").add(rows)
    cache = Cache(tmp_path / "a")
    assert cache.push(tmp_path / "b", "organization", prompt="query: ").added == 2
    assert Cache(tmp_path / "c").pull(cache, contains="d").added == 1
    assert Cache(tmp_path / "c").pull(Cache(tmp_path / "b")).added == 2
    with pytest.raises(ConfigError, match="target is empty"):
        cache.push("")
    with pytest.raises(ConfigError, match="source is empty"):
        cache.pull("")


def in_store(remote: Remote) -> Location:
    """Its traffic counts from here on."""
    return Location.of(remote.url, remote.options)


def test_out_of_a_store_comes_what_is_missing(remote: Remote, tmp_path: Path) -> None:
    rows = make_rows([f"text {i}" for i in range(5000)], dim=256)  # 5 MB
    source = space_in(tmp_path / "a")
    source.add(rows)
    source.canaries.add(make_rows(["canary"], dim=256))
    report = Cache(tmp_path / "a").push(remote.url, storage_options=remote.options)
    assert (report.added, report.spaces[0].canaries) == (5000, 1)
    space_in(tmp_path / "b").add(rows.take(np.r_[0:2000, 2100:5000]))
    place = in_store(remote)
    (space,) = transfer(place, tmp_path / "b").spaces
    assert (space.added, space.present, space.canaries) == (100, 4900, 1)
    assert equal(space_in(tmp_path / "b"), rows)
    assert place.traffic.read < 600_000 and place.traffic.requests < 60
    place = in_store(remote)
    assert transfer(place, tmp_path / "b").added == 0
    assert place.traffic.read < 300_000 and place.traffic.requests < 40  # keys, and what opens
    place = in_store(remote)
    (space,) = transfer(place, tmp_path / "c", contains="text 77").spaces
    assert (space.added, space.unfit) == (11, 4989)
    assert place.traffic.read < 1_500_000


@pytest.mark.usefixtures("small_chunks")
def test_a_store_that_is_killed_in_the_middle(
    object_store: ObjectStore, remote: Remote, tmp_path: Path
) -> None:
    rows = make_rows([f"{i}" for i in range(1000)])
    space_in(tmp_path / "a").add(rows)
    transfer(tmp_path / "a", in_store(remote))
    seen: list[TransferProgress] = []

    def kill_once(done: TransferProgress) -> None:
        if not seen:
            object_store.kill()
            object_store.start()
        seen.append(done)

    assert transfer(in_store(remote), tmp_path / "b", progress=kill_once).added == 1000
    assert equal(space_in(tmp_path / "b"), rows) and seen[-1].rows == 1000
