from __future__ import annotations

import shutil
from collections.abc import Callable

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embcache import CacheError, CacheFormatError, CacheWriteError
from embcache.identity.identity import Identity
from embcache.identity.keys import Keys
from embcache.store import Space
from embcache.store.verify import row_checksums
from embcache.tools.check import check_space
from tests.spaces import IDENTITY, add_blindly, folder, make_rows, read_all

Open = Callable[..., Space]


def test_nothing_is_made_before_the_first_row(open_space: Open) -> None:
    space = open_space()
    assert not folder(space).exists() and space.refresh().dim is None and len(space.refresh()) == 0
    assert (space.refresh().find(make_rows(["a"]).keys) == -1).all()


def test_what_was_appended_is_read_bit_for_bit(open_space: Open) -> None:
    rows = make_rows([f"text {i}" for i in range(5000)], dim=16)
    open_space().add(rows)
    space = open_space()
    vectors, failed = read_all(space, rows)
    assert space.refresh().dim == 16 and len(space.refresh()) == 5000
    assert not failed.any()
    assert vectors.tobytes() == rows.values.tobytes()


@pytest.mark.parametrize("share", [0.002, 0.05, 0.4, 1.0])
def test_any_share_of_the_rows_in_any_order(open_space: Open, share: float) -> None:
    """Few rows are taken, many are scanned, per fragment: both ways, and their mixture."""
    space = open_space()
    parts = [make_rows([f"{part} {i}" for i in range(3000)], seed=part) for part in range(3)]
    for part in parts:
        space.add(part)
    rng = np.random.default_rng(1)
    for part in parts:
        chosen = rng.permutation(3000)[: max(1, int(share * 3000))]
        some = parts[0].keys[:5]
        keys = np.concatenate((part.keys[chosen], some))
        expected = np.concatenate((part.values[chosen], parts[0].values[:5]))
        snapshot = space.refresh()
        values, failed = snapshot.read_all(snapshot.find(keys), keys)
        assert not failed.any() and (values == expected).all()


def test_parts_say_which_of_the_wanted_rows_they_are(open_space: Open) -> None:
    space, rows = open_space(), make_rows(["a", "b", "c"])
    snapshot = space.add(rows)
    wanted = np.array([2, 0, 1, 0])
    values = np.zeros((4, 8), np.float32)
    for part in snapshot.read(snapshot.find(rows.keys[wanted]), rows.keys[wanted]):
        values[part.at] = part.values
    assert (values == rows.values[wanted]).all()


def test_the_row_committed_first_counts(open_space: Open) -> None:
    first, second = make_rows(["a", "b"], seed=1), make_rows(["b", "c"], seed=2)
    space = open_space()
    space.add(first)
    add_blindly(space, second)
    for each in (space, open_space()):
        assert (read_all(each, first)[0] == first.values).all()
        assert (read_all(each, second)[0][1] == second.values[1]).all()


def test_it_still_counts_after_compaction(open_space: Open) -> None:
    parts = [make_rows(["same", f"other {i}"], seed=i) for i in range(5)]
    space = open_space()
    space.add(parts[0])
    for part in parts[1:]:
        add_blindly(space, part)
    lancedb.connect(str(folder(space).parent)).open_table(space.name).optimize()
    for each in (space, open_space()):
        assert (read_all(each, parts[0])[0] == parts[0].values).all()
        assert (read_all(each, parts[4])[0][1] == parts[4].values[1]).all()


def test_refresh_sees_other_writers(open_space: Open) -> None:
    mine, theirs = open_space(), open_space()
    for i in range(12):
        rows = make_rows([f"{i} {j}" for j in range(7)], seed=i)
        theirs.add(rows)
        assert (mine.snapshot.find(rows.keys) == -1).all()
        assert (read_all(mine, rows)[0] == rows.values).all()
    assert len(mine.refresh()) == 84


def test_refresh_after_the_cache_was_deleted(open_space: Open) -> None:
    space, rows = open_space(), make_rows(["a"])
    space.add(rows)
    shutil.rmtree(folder(space))
    assert space.refresh().dim is None and (space.refresh().find(rows.keys) == -1).all()


def test_delete(open_space: Open) -> None:
    space, rows = open_space(), make_rows([f"{i}" for i in range(1200)])
    space.add(rows)
    space.drop(rows.keys[:700])
    snapshot = space.refresh()
    found = snapshot.find(rows.keys)
    assert (found[:700] == -1).all()
    values, failed = snapshot.read_all(found[700:], rows.keys[700:])
    assert not failed.any() and (values == rows.values[700:]).all()


def test_columns_and_metadata_on_disk(open_space: Open) -> None:
    """Read with Lance alone, as someone without embcache would."""
    space, rows = open_space(), make_rows(["a", "b"])
    space.add(rows)
    table = lance.dataset(str(folder(space))).to_table()
    assert table.schema.names == [
        "key",
        "vector",
        "checksum",
        "text",
        "prompt",
        "prompt_type",
        "task",
        "n_tokens",
        "created_at",
    ]
    assert table.schema.field("key").type == pa.binary(16)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 8)
    assert table.schema.field("checksum").type == pa.uint64()
    assert table["text"].to_pylist() == ["a", "b"]
    assert table["prompt"].to_pylist() == ["p: ", "p: "]
    assert table["prompt_type"].to_pylist() == ["query"] * 2
    assert table["task"].to_pylist() == ["Task"] * 2
    assert table["n_tokens"].to_pylist() == [0, 1]
    assert table["checksum"].to_pylist() == row_checksums(rows.keys, rows.values).tolist()
    metadata = table.schema.metadata
    assert metadata[b"embcache:format_version"] == b"1"
    assert metadata[b"embcache:identity"].decode() == IDENTITY.to_json()
    assert metadata[b"embcache:engine_version"] == b"vllm 1.0"
    assert metadata[b"embcache:version"]


def test_without_text(open_space: Open) -> None:
    space, rows = open_space(store_text=False), make_rows(["secret"])
    space.add(rows)
    assert not {"text", "prompt"} & set(lance.dataset(str(folder(space))).schema.names)
    open_space(store_text=True).add(make_rows(["more"]))  # the table's columns count


def test_text_switched_off_later_leaves_nulls(open_space: Open) -> None:
    open_space().add(make_rows(["a"]))
    space = open_space(store_text=False)
    space.add(make_rows(["b"]))
    assert lance.dataset(str(folder(space))).to_table()["text"].to_pylist() == ["a", None]


def test_another_dimension_is_an_error(open_space: Open) -> None:
    open_space().add(make_rows(["a"], dim=8))
    with pytest.raises(
        CacheError, match="holds vectors of 8 components, and those to be added have 9"
    ):
        open_space().add(make_rows(["b"], dim=9))


def test_another_identity_under_this_name(open_space: Open) -> None:
    space = open_space()
    other = open_space(Identity("x/y", "r", "float16"))
    other.add(make_rows(["a"]))
    folder(other).rename(folder(space))
    with pytest.raises(CacheError, match="holds another identity than its name says"):
        space.refresh()


def test_newer_format(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    lance.dataset(str(folder(space))).update_schema_metadata({"embcache:format_version": "2"})
    with pytest.raises(CacheFormatError, match=r"format version 2; this embcache .* up to 1"):
        open_space().refresh()


def test_a_table_of_someone_else(open_space: Open) -> None:
    space = open_space()
    lance.write_dataset(pa.table({"x": [1]}), str(folder(space)))
    with pytest.raises(CacheFormatError, match="not one that embcache wrote"):
        space.refresh()


def test_damaged_metadata(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    lance.dataset(str(folder(space))).update_schema_metadata({"embcache:identity": "{}"})
    with pytest.raises(CacheFormatError, match="unreadable schema metadata"):
        open_space().refresh()


def test_two_creations_at_once_keep_what_both_write(
    open_space: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one creates and appends between this one's look and its creation."""
    mine, theirs = make_rows(["a"]), make_rows(["b"])
    space, other = open_space(), open_space()
    create = Space._create

    def create_late(self: Space, dim: int) -> None:
        if self is space:
            other.add(theirs)
        create(self, dim)

    monkeypatch.setattr(Space, "_create", create_late)
    space.add(mine)
    assert len(space.refresh()) == 2 and (space.refresh().find(theirs.keys) >= 0).all()
    assert [path.name for path in folder(space).parent.iterdir()] == [folder(space).name]


def test_spaces_keep_stable_row_ids(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    assert lance.dataset(str(folder(space))).has_stable_row_ids


class TestStaging:
    """Rows that are written to files by one handle, and committed by another."""

    @staticmethod
    def staging(open_space: Open) -> tuple[Space, list[tuple[str, Keys]]]:
        space, staged = open_space(), list[tuple[str, Keys]]()
        space.stage(lambda file, keys: staged.append((file, keys)))
        return space, staged

    def test_nobody_sees_what_is_staged(self, open_space: Open) -> None:
        space, staged = self.staging(open_space)
        rows = make_rows(["a", "b", "a"])
        assert not open_space().stages and space.stages
        assert len(space.add(rows)) == 0
        [(_, keys)] = staged
        assert (keys == rows.keys[:2]).all()
        assert len(space.refresh()) == len(open_space().refresh()) == 0
        open_space().add_staged([file for file, _ in staged])
        vectors, failed = read_all(space, make_rows(["a", "b"]))
        assert not failed.any() and (vectors == rows.values[:2]).all()
        assert len(open_space().refresh()) == 2 and check_space(open_space()).ok

    def test_many_files_are_one_commit(self, open_space: Open) -> None:
        first, staged = self.staging(open_space)
        second, others = self.staging(open_space)
        first.add(make_rows(["a", "b"]))
        second.add(make_rows(["c"]))
        first.add(make_rows(["d"]))
        before = open_space().open().dataset.version
        fragments = open_space().add_staged([file for file, _ in (*staged, *others)])
        assert [fragment.count_rows() for fragment in fragments] == [2, 1, 1]
        reader = open_space().open()
        assert reader.dataset.version == before + 1 and len(reader) == 4
        assert not read_all(open_space(), make_rows(["a", "b", "c", "d"]))[1].any()

    def test_what_is_cached_is_not_staged(self, open_space: Open) -> None:
        open_space().add(make_rows(["a"]))
        space, staged = self.staging(open_space)
        space.add(make_rows(["a"]))
        assert not staged
        space.add(make_rows(["a", "b"]))
        assert (staged[0][1] == make_rows(["a", "b"]).keys[1:]).all()

    def test_a_commit_whose_answer_was_lost(self, open_space: Open) -> None:
        space, staged = self.staging(open_space)
        space.add(make_rows(["a"]))
        space.add(make_rows(["b"]))
        files = [file for file, _ in staged]
        open_space().add_staged(files[:1])
        fragments = open_space().add_staged(files)
        assert sum(fragment.count_rows() for fragment in fragments) == 2
        assert len(open_space().add_staged(files)) == 2
        assert len(open_space().refresh()) == 2 and check_space(open_space()).duplicates == 0

    def test_beside_other_writers(self, open_space: Open) -> None:
        space, staged = self.staging(open_space)
        space.add(make_rows(["a"]))
        open_space().add(make_rows(["b"]))
        open_space().add_staged([staged[0][0]])
        space.add(make_rows(["c"]))  # of a version that is an old one by now
        open_space().add(make_rows(["d"]))
        open_space().add_staged([staged[1][0]])
        assert not read_all(open_space(), make_rows(["a", "b", "c", "d"]))[1].any()
        assert check_space(open_space()).rows == 4

    def test_a_table_that_was_removed(self, open_space: Open) -> None:
        space, staged = self.staging(open_space)
        space.add(make_rows(["a"]))
        shutil.rmtree(folder(space))
        with pytest.raises(CacheWriteError, match="it was there, and was removed meanwhile"):
            open_space().add_staged([staged[0][0]])

    def test_canaries_are_committed(self, open_space: Open) -> None:
        space, _ = self.staging(open_space)
        assert not space.canaries.stages

    def test_no_index_is_kept(self, open_space: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("embcache.store.index_file.LEAST_KEYS", 1)
        open_space().add(make_rows(["a", "b"]))
        space, _ = self.staging(open_space)
        space.refresh()
        before = sorted(folder(space).rglob("*"))
        space.keep_index()
        assert sorted(folder(space).rglob("*")) == before
        other = open_space()
        other.refresh()
        other.keep_index()
        assert sorted(folder(space).rglob("*")) != before
