"""Mending: what can be read stays, the rest is a miss, and nothing is lost by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from embcache.errors import CacheError, CacheWriteError
from embcache.store import Location, Space
from embcache.tools.check import CheckReport, check_space
from embcache.tools.compact import compact_space
from embcache.tools.find import find_spaces
from embcache.tools.repair import Repair
from tests.spaces import IDENTITY, append_raw, folder, make_rows, read_all
from tests.store.test_damage import flip_bit
from tests.tools.test_check import with_canaries

Open = Callable[..., Space]
ROWS = [make_rows([f"{part} {i}" for i in range(50)], dim=16, seed=part) for part in range(3)]


def filled(open_space: Open, **kwargs: object) -> Space:
    """Three fragments of 50 rows."""
    space = open_space(**kwargs)
    for rows in ROWS:
        space.add(rows)
    return space


def manifests(space: Space) -> list[Path]:
    """Newest first."""
    return sorted((folder(space) / "_versions").glob("*.manifest"))


def data_of(space: Space, part: int) -> Path:
    fragment = lance.dataset(str(folder(space))).get_fragments()[part]
    return folder(space) / "data" / fragment.metadata.files[0].path


def fixed(space: Space) -> tuple[CheckReport, Repair]:
    """Mend; a second check finds nothing."""
    report = check_space(Space(space.location), fix=True)
    assert report.ok and report.repair is not None, str(report)
    again = check_space(Space(space.location), fix=True)
    assert again.ok and again.repair is None, str(again)
    return report, report.repair


def missing(space: Space) -> list[int]:
    """How many rows of each part are misses; of the others, vectors are right."""
    snapshot = Space(space.location).refresh()
    counts = []
    for rows in ROWS:
        there = snapshot.find(rows.keys) >= 0
        values, damaged = snapshot.read_all(snapshot.find(rows.keys[there]), rows.keys[there])
        assert not damaged.any() and (values == rows.values[there]).all()
        counts.append(int((~there).sum()))
    return counts


def test_a_file_that_misdescribes_itself(open_space: Open) -> None:
    """Its vectors can be read by the manifest, its texts cannot, and the file says nothing."""
    space = filled(open_space)
    path = data_of(space, 1)
    raw = path.read_bytes()
    assert raw.count(b"fixed_size_binary:16") == 1 and b"1 0" in raw
    path.write_bytes(
        raw.replace(b"fixed_size_binary:16", b"bixed_size_binary:16").replace(b"1 0", b"\xff 0", 1)
    )
    assert "texts or notes in data/" in str(check_space(Space(space.location)))
    _, repair = fixed(space)
    assert missing(space) == [0, 0, 0] and repair.dropped == repair.recovered == 50


def test_a_left_over_is_not_taken_in_while_no_manifest_is_lost(open_space: Open) -> None:
    """Lance's clean-up leaves some, and what they hold may have been deleted."""
    space = filled(open_space, compact_automatically=False)
    left = data_of(space, 1)
    raw = left.read_bytes()
    space.drop(ROWS[1].keys)
    compact_space(Space(space.location), older_than=timedelta(0))
    left.write_bytes(raw)
    report = check_space(Space(space.location), fix=True)
    assert report.ok and report.unnamed == 0 and report.repair is None
    assert missing(space) == [0, 50, 0]


@pytest.mark.parametrize("how", ["gone", "empty", "half"])
def test_a_lost_data_file_costs_its_rows_only(open_space: Open, how: str) -> None:
    space = filled(open_space)
    path = data_of(space, 1)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2 if how == "half" else 0])
    if how == "gone":
        path.unlink()
    _, repair = fixed(space)
    assert missing(space) == [0, 50, 0] and repair.dropped == 50 and repair.recovered == 0
    if how != "gone":  # a compaction removes it from the table, and not from there
        assert repair.set_aside is not None
        (kept,) = Path(repair.set_aside.uri).glob("*/data/*")
        assert kept.name == path.name and str(repair.set_aside) in str(repair)
    compact_space(Space(space.location), older_than=timedelta(0))
    assert missing(space) == [0, 50, 0]


def test_the_newest_manifest_is_broken(open_space: Open) -> None:
    """The older version lacks what was added last; its data file says itself what it is of."""
    space = filled(open_space)
    manifests(space)[0].write_bytes(b"\\xff" * 100)
    report = check_space(Space(space.location))
    assert not report.ok and report.rows == 100 and "an older version, with 100 rows" in str(report)
    _, repair = fixed(space)
    assert missing(space) == [0, 0, 0] and (repair.manifests, repair.recovered) == (1, 50)


def test_the_newest_manifest_is_gone(open_space: Open) -> None:
    """Nothing is wrong with what is left, and no row is given up."""
    space = filled(open_space)
    manifests(space)[0].unlink()
    report = check_space(Space(space.location))
    assert report.ok and report.unnamed == 1 and "1 data files that no version names" in str(report)
    assert check_space(Space(space.location), fix=True).ok
    assert missing(space) == [0, 0, 0]


@pytest.mark.parametrize("how", ["broken", "gone"])
@pytest.mark.parametrize("store_text", [True, False])
def test_all_manifests(open_space: Open, how: str, store_text: bool) -> None:
    space = filled(open_space, store_text=store_text)
    for path in manifests(space):
        path.write_bytes(b"no manifest") if how == "broken" else path.unlink()
    cache = folder(space).parent
    (found,) = find_spaces(None, cache)
    assert found.location == space.location
    assert Location.of(cache).table(space.name).is_lost_table() == (how == "gone")
    _, repair = fixed(found)
    assert repair.rebuilt and repair.recovered == 150 and missing(space) == [0, 0, 0]
    assert Space(space.location).metadata == space.metadata
    assert Space(space.location).open().columns == space.open().columns
    assert lance.dataset(str(folder(space))).has_stable_row_ids


def test_all_manifests_beside_a_file_that_is_called_like_one(open_space: Open) -> None:
    space = filled(open_space)
    for path in manifests(space):
        path.write_bytes(b"")
    (folder(space) / "_versions" / "junk.manifest").write_bytes(b"junk")
    _, repair = fixed(space)
    assert missing(space) == [0, 0, 0] and repair.rebuilt


def test_nothing_can_be_read_at_all(open_space: Open) -> None:
    space = with_canaries(open_space())
    for path in folder(space).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (found,) = find_spaces(None, folder(space).parent)
    report = check_space(found, fix=True)
    assert report.ok and report.repair is not None and report.repair.moved
    assert find_spaces(None, folder(space).parent) == []
    assert not folder(space).exists() and report.repair.set_aside is not None
    assert (Path(report.repair.set_aside.uri) / "rest" / folder(space).name / "data").is_dir()
    space = open_space()
    space.add(ROWS[0])
    assert check_space(space).ok


def test_an_older_manifest_would_stop_every_compaction(open_space: Open) -> None:
    space = filled(open_space)
    raw = manifests(space)[1].read_bytes()
    manifests(space)[1].write_bytes(raw[:-2] + b"xx")  # Lance opens this version all the same
    with pytest.raises(CacheError, match=r"Compacting .* failed"):
        compact_space(space)
    report = check_space(Space(space.location))
    assert not report.ok and "is damaged at its end" in str(report)
    fixed(space)
    compact_space(Space(space.location), older_than=timedelta(0))
    assert missing(space) == [0, 0, 0]


def test_two_manifests_that_were_swapped(open_space: Open) -> None:
    space = filled(open_space)
    first, second = manifests(space)[:2]
    raw = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(raw)
    report = check_space(Space(space.location))
    assert not report.ok and "an older version, with 50 rows" in str(report)
    fixed(space)
    assert missing(space) == [0, 0, 0]


def test_a_manifest_that_misnames_a_file(open_space: Open) -> None:
    """Older versions name it right: the rows are found by their ids."""
    space = filled(open_space)
    path, manifest = data_of(space, 0), manifests(space)[0]
    flip_bit(manifest, manifest.read_bytes().index(path.name.encode()) + 30)
    _, repair = fixed(space)
    assert missing(space) == [0, 0, 0] and repair.recovered == 50


@pytest.mark.parametrize("how", ["gone", "broken"])
def test_a_lost_deletion_file(open_space: Open, how: str) -> None:
    space = filled(open_space)
    space.drop(ROWS[1].keys[:5])
    (path,) = (folder(space) / "_deletions").iterdir()
    path.unlink() if how == "gone" else path.write_bytes(b"broken")
    _, repair = fixed(space)
    assert repair.dropped == 45 and missing(space) == [0, 0, 0]  # nobody knows what was deleted


def test_deletions_of_a_damaged_file_stay_deletions(open_space: Open) -> None:
    space = filled(open_space)
    space.drop(ROWS[1].keys[:5])
    path = data_of(space, 1)
    flip_bit(path, path.read_bytes().index(b"1 7"), 7)  # no UTF-8: the fragment is written anew
    _, repair = fixed(space)
    assert repair.recovered == 45 and missing(space) == [0, 5, 0]


def test_deletion_files_that_were_swapped(open_space: Open) -> None:
    space = filled(open_space)
    space.drop(ROWS[0].keys[:5])
    space.drop(ROWS[1].keys[:3])
    first, second = (folder(space) / "_deletions").iterdir()
    raw = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(raw)
    assert not check_space(Space(space.location)).ok
    fixed(space)
    assert missing(space)[2] == 0 and sum(missing(space)) == 0


def test_an_intact_copy_of_before_a_compaction_comes_back(open_space: Open) -> None:
    space = filled(open_space)
    space.drop(ROWS[0].keys[:5])
    compact_space(space)
    path = data_of(space, 0)
    needle = ROWS[2].values[9].tobytes()
    flip_bit(path, path.read_bytes().index(needle))
    report, repair = fixed(space)
    assert (report.damaged, repair.recovered) == (1, 1)
    assert missing(space) == [5, 0, 0]  # and what was deleted does not


def test_a_whole_compacted_file_comes_back(open_space: Open) -> None:
    space = filled(open_space)
    space.drop(ROWS[0].keys[:5])
    compact_space(space)
    data_of(space, 0).unlink()
    _, repair = fixed(space)
    assert repair.recovered == 145 and missing(space) == [5, 0, 0]


def test_what_is_not_the_spaces_is_not_taken_in(open_space: Open) -> None:
    from embcache.identity.identity import Identity

    space = filled(open_space)
    other = Identity("another", "1", "float32")
    foreign = open_space(identity=other)
    foreign.add(make_rows(["a"], dim=16, identity=other))
    path = data_of(foreign, 0)
    (folder(space) / "data" / path.name).write_bytes(path.read_bytes())
    (folder(space) / "data" / "junk.lance").write_bytes(b"junk")
    hint = folder(space) / "_versions" / "latest_version_hint.json"
    hint.write_text('{"version":9}')  # there seems to have been a version that named them
    report = check_space(Space(space.location), fix=True)
    assert report.ok and report.unnamed == 2 and report.repair is None
    assert check_space(Space(space.location)).rows == 150


def test_canaries_stay(open_space: Open) -> None:
    space = with_canaries(open_space())
    manifests(space)[0].write_bytes(b"")
    report, _ = fixed(space)
    assert report.canaries.count == 5 and not report.canaries.mended


def test_an_older_manifest_of_the_canaries(open_space: Open) -> None:
    space = with_canaries(open_space())
    manifests(space.canaries)[-1].write_bytes(b"")
    report = check_space(Space(space.location))
    assert not report.ok and "canaries cannot be read" in str(report)
    assert check_space(Space(space.location), fix=True).canaries.mended
    compact_space(Space(space.location), older_than=timedelta(0))
    assert check_space(Space(space.location)).ok


def test_a_file_that_may_not_be_opened_is_no_damage(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permission, or too many open files: setting all manifests aside would be the damage."""
    space = filled(open_space)
    newest = manifests(space)[0]
    raw = newest.read_bytes()
    newest.write_bytes(b"")
    real = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self == newest:
            raise PermissionError(13, os.strerror(13))
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(CacheError, match=r"cannot be opened: .*so nothing is mended"):
            check_space(Space(space.location), fix=True)
    newest.write_bytes(raw)
    assert missing(space) == [0, 0, 0]


def test_readers_and_writers_go_on(open_space: Open) -> None:
    """Handles from before the damage, in this process or another, meet one more version."""
    space, writer = filled(open_space), open_space()
    before = writer.refresh()
    manifests(space)[0].write_bytes(b"")
    fixed(space)
    values, damaged = before.read_all(before.find(ROWS[2].keys), ROWS[2].keys)
    assert not damaged.any() and (values == ROWS[2].values).all()
    new = make_rows(["new"], dim=16, seed=9)
    writer.add(new)
    assert (read_all(open_space(), new)[0] == new.values).all() and missing(space) == [0, 0, 0]


def test_killed_between_appending_and_deleting(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = filled(open_space)
    path = data_of(space, 1)
    flip_bit(path, path.read_bytes().index(b"1 7"), 7)

    def kill(*args: object) -> None:
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Space, "drop_fragments", kill)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            check_space(Space(space.location), fix=True)
    _, repair = fixed(space)
    assert repair.recovered == 0 and missing(space) == [0, 0, 0]
    assert check_space(Space(space.location)).rows == 150


def test_row_ids_that_repeat(open_space: Open) -> None:
    """A deletion by row id would take both rows."""
    space = filled(open_space)
    manifest = manifests(space)[0]
    raw = manifest.read_bytes()
    at = raw.rindex(bytes([8, 100, 16, 150, 1]))
    # From 100 to 150 becomes from 50 to 100, in as many bytes: the ids of the second fragment.
    manifest.write_bytes(raw[:at] + bytes([8, 50, 16, 100 | 128, 0]) + raw[at + 5 :])
    report = check_space(Space(space.location))
    assert not report.ok and len(report.unreadable) == 2
    assert "its row ids are those of other rows" in str(report)
    fixed(space)
    assert missing(space) == [0, 0, 0]


def test_duplicates_of_a_damaged_fragment(open_space: Open) -> None:
    """The row that stays is not deleted as the later one of a row that goes."""
    space = filled(open_space)
    append_raw(space, ROWS[1])
    data_of(space, 1).write_bytes(b"")
    _, repair = fixed(space)
    assert repair.dropped == 50 and missing(space) == [0, 0, 0]


def test_scores(scores: Space) -> None:
    keys = scores.refresh().keys()
    for path in manifests(scores):
        path.unlink()
    _, repair = fixed(scores)
    snapshot = Space(scores.location).refresh()
    assert repair.rebuilt and (snapshot.find(keys) >= 0).all()
    values, _ = snapshot.read_all(snapshot.find(keys), keys)
    assert sorted(values[:, 0].tolist()) == [0.25, 0.5]
    assert Space(scores.location).identity == IDENTITY and np.isfinite(values).all()


def test_a_version_that_can_be_read_and_not_written_on(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip in a fragment's description, which Lance looks at when it commits."""
    space = filled(open_space, compact_automatically=False)
    newest = space.open().dataset.version
    path = data_of(space, 0)
    flip_bit(path, path.read_bytes().find(ROWS[0].values[7].tobytes()))
    real = Space.delete_rows

    def refuse(self: Space, row_ids: np.ndarray) -> None:
        if self.open().dataset.version == newest:
            raise CacheWriteError("cannot commit fragment 2: it marks row lineage as spilled")
        real(self, row_ids)

    monkeypatch.setattr(Space, "delete_rows", refuse)
    _, repair = fixed(space)
    assert missing(space) == [1, 0, 0] and repair.set_aside is not None


def test_a_data_file_that_the_manifest_calls_otherwise(open_space: Open) -> None:
    """Only an older version names it as it is called, and row ids say nothing any more."""
    space = filled(open_space)
    space.drop(ROWS[1].keys[:3])
    (deletions,) = (folder(space) / "_deletions").iterdir()
    newest, name = manifests(space)[0], data_of(space, 1).name.encode()
    raw = newest.read_bytes()
    assert name in raw
    newest.write_bytes(raw.replace(name, name.replace(b".lance", b".,ance")))
    deletions.unlink()
    fixed(space)
    assert missing(space) == [0, 0, 0]
