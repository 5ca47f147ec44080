from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from embcache.errors import CacheError
from embcache.store import Location, Space
from embcache.store.manifests import data_paths
from embcache.store.salvage import pass_by
from embcache.store.versions import open_version, read_versions
from tests.spaces import IDENTITY, folder, make_rows

Open = Callable[..., Space]


def test_a_whole_table(open_space: Open) -> None:
    space = open_space()
    for text in "abc":
        space.add(make_rows([text]))
    found = read_versions(space.location)
    assert found.newest is not None and found.newest.dataset.version == 4
    assert (found.unusable, found.older, found.unnamed) == ((), (), ())
    assert len(data_paths(folder(space))) == 3


def test_what_a_compaction_leaves_is_named_by_an_older_version(open_space: Open) -> None:
    space = open_space()
    for text in "abc":
        space.add(make_rows([text]))
    before = space.open().dataset.version
    space.table().optimize()
    found = read_versions(space.location)
    (older,) = found.older  # Lance commits that it will compact, and then that it has
    assert older >= before and found.unnamed == ()


@pytest.mark.parametrize("name", ["junk.manifest", "junk", "9.tmp", "x.manifest.tmp"])
def test_what_lance_passes_over_is_passed_over(open_space: Open, name: str) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    (folder(space) / "_versions" / name).write_bytes(b"junk")
    assert read_versions(space.location).unusable == ()
    assert len(open_space().refresh()) == 1


def test_a_manifest_with_a_name_of_other_tables(open_space: Open) -> None:
    """One such file, and Lance opens the table no more."""
    space = open_space()
    space.add(make_rows(["a"]))
    (folder(space) / "_versions" / "7.manifest").write_bytes(b"junk")
    (bad,) = read_versions(space.location).unusable
    assert bad.newer and "has a name that no manifest" in bad.why


def test_a_column_that_was_renamed_is_damage_and_a_dropped_one_is_not(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    lance.dataset(str(folder(space))).drop_columns(["task"])
    assert read_versions(space.location).unusable == ()
    newest = min((folder(space) / "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes().replace(b"n_tokens", b"o_tokens"))
    (bad,) = read_versions(space.location).unusable
    assert "its columns are not those of its data files" in bad.why


def test_a_version_that_is_not_there(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    with pytest.raises(CacheError, match=r"Opening version 99 of .* failed"):
        open_version(space.location, 99)


def test_no_table_at_all(tmp_path: Path) -> None:
    found = read_versions(Location.of(tmp_path / f"x--float32--{IDENTITY.fingerprint()}.lance"))
    assert found.newest is None and found.unnamed == ()


@pytest.mark.parametrize("version", [10**6, 2**63, 2**64 - 2])
def test_a_version_far_above_all_others_is_not_waited_for(version: int, open_space: Open) -> None:
    """Versions are counted one by one, so a file's mere name would have it go on for ever."""
    space = open_space(compact_automatically=False)
    space.add(make_rows(["a"]))
    [last] = space.location.versions()[:1]
    pass_by(space.location, last, last + version)
    assert space.location.versions()[:1] == [last]
    pass_by(space.location, last, last + 3)
    assert space.location.versions()[:1] == [last + 4]
