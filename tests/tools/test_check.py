"""Checking: what is damaged on purpose is found, named and deleted; what is not is left alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from mteb.mocks.mock_tasks import MockRerankingTask

from embcache import CachedEncoder, ConfigError, LanceCache
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import SCORES, Database, Location, Rows, Space
from embcache.tools.check import CanaryReport, check_space
from embcache.tools.compact import compact_space
from embcache.tools.repair import Repair
from tests.fakes import FakeEngine
from tests.spaces import IDENTITY, add_blindly, append_raw, folder, make_rows, read_all
from tests.store.test_damage import data_files, flip_bit

Open = Callable[..., Space]


def test_a_sound_space(open_space: Open) -> None:
    space = open_space()
    for part in range(3):
        space.add(make_rows([f"{part} {i}" for i in range(100)], seed=part))
    report = check_space(space)
    assert report.ok and report.rows == 300 and report.unverified == 0
    assert str(report) == f"{space.name}: 300 rows, ok"


def test_a_flipped_bit_in_a_vector(open_space: Open) -> None:
    space, rows = open_space(), make_rows([f"text {i}" for i in range(100)], dim=64)
    space.add(rows)
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(rows.values[17].tobytes()) + 40, 3)
    report = check_space(space)
    assert not report.ok and report.damaged == 1 and report.deleted == 0
    assert "1 damaged" in str(report) and "`check_space` with fix=True" in str(report)
    fixed = check_space(space, fix=True)
    assert fixed.ok and fixed.deleted == 1 and "1 deleted" in str(fixed)
    assert check_space(space).ok
    fresh = open_space()
    assert np.flatnonzero(fresh.refresh().find(rows.keys) < 0).tolist() == [17]


def test_a_flipped_bit_in_a_key(open_space: Open) -> None:
    """Deleted by row id: its key is not known any more."""
    space, rows = open_space(), make_rows([f"text {i}" for i in range(100)], dim=64)
    space.add(rows)
    raw = rows.keys[5].astype(">u8").tobytes()
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(raw))
    assert check_space(space, fix=True).deleted == 1
    assert len(open_space().refresh()) == 99 and check_space(space).ok


def test_a_flipped_bit_in_a_text(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows([f"text number {i} {'x' * i}" for i in range(100)], dim=4))
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"text number 7 "))
    report = check_space(space)
    assert not report.ok and (report.misfits, report.damaged) == (1, 0)
    assert check_space(space, fix=True).deleted == 1
    assert check_space(space).ok


def test_a_text_that_is_no_text_any_more(open_space: Open) -> None:
    """Lance refuses the whole batch's texts then; the vectors can be checked all the same."""
    space = open_space()
    space.add(make_rows([f"text number {i} {'x' * i}" for i in range(100)], dim=4))
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"text number 7 "), 7)
    report = check_space(space)
    assert not report.ok and (report.damaged, report.unverified) == (0, 100)
    (named,) = report.unreadable
    assert named.startswith(f"texts or notes in data/{path.name} (100 rows)")
    fixed = check_space(space, fix=True)
    assert fixed.ok and fixed.repair is not None and fixed.repair.recovered == 100
    assert check_space(space).unverified == 1  # the others have their texts


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(open_space: Open, value: float) -> None:
    space, rows = open_space(), make_rows(["a", "b"])
    space.add(make_rows(["c"]))
    rows.values[1, 3] = value
    append_raw(space, rows)
    report = check_space(space, fix=True)
    assert report.damaged == report.deleted == 1 and len(open_space().refresh()) == 2


def test_rows_of_another_identity(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a", "b"]))
    space.add(make_rows(["c", "d", "e"], identity=Identity("another", "1", "float32")))
    report = check_space(space)
    assert not report.ok and report.misfits == 3
    assert "3 whose key does not fit their text" in str(report)
    assert check_space(space, fix=True).ok and len(open_space().refresh()) == 2


def test_duplicates_are_harmless_and_the_first_stays(open_space: Open) -> None:
    space = open_space()
    first, second = make_rows(["a", "b"], seed=1), make_rows(["b", "c"], seed=2)
    space.add(first)
    for _ in range(2):
        add_blindly(space, second)
    space.optimize(timedelta(hours=1))  # merges only, as a writer does in the background
    report = check_space(space)
    assert report.ok and report.duplicates == 3 and "harmless" in str(report)
    assert check_space(space, fix=True).deleted == 3
    fresh = open_space()
    assert len(fresh.refresh()) == 3 and (read_all(fresh, first)[0] == first.values).all()


def test_of_a_damaged_row_and_its_duplicate_the_intact_one_stays(open_space: Open) -> None:
    space = open_space()
    first, second = make_rows(["a", "b"], dim=32, seed=1), make_rows(["a"], dim=32, seed=2)
    space.add(first)
    (path,) = data_files(space)
    add_blindly(space, second)
    flip_bit(path, path.read_bytes().index(first.values[0].tobytes()))
    report = check_space(space, fix=True)
    assert (report.damaged, report.duplicates, report.deleted) == (1, 0, 1)
    assert (read_all(open_space(), second)[0] == second.values).all()


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_named_and_others_are_checked(open_space: Open, keep: float) -> None:
    space = open_space()
    for part in range(3):
        space.add(make_rows([f"{part} {i}" for i in range(400)], dim=64, seed=part))
    files = {path.stat().st_mtime_ns: path for path in data_files(space)}
    broken = files[sorted(files)[1]]
    broken.write_bytes(broken.read_bytes()[: int(keep * broken.stat().st_size)])
    report = check_space(space)
    assert not report.ok and report.rows == 1200 and report.damaged == 0
    (named,) = report.unreadable
    assert broken.name in named and "400 rows" in named
    assert broken.name in str(report) and "`check_space` with fix=True" in str(report)


def test_a_file_that_is_gone(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    (path,) = data_files(space)
    path.unlink()
    (named,) = check_space(space).unreadable
    assert path.name in named


def test_without_texts_keys_cannot_be_verified(open_space: Open) -> None:
    space = open_space(store_text=False)
    space.add(make_rows(["a", "b"], identity=Identity("another", "1", "float32")))
    report = check_space(space)
    assert report.ok and report.unverified == 2


def test_scores(tmp_path: Path) -> None:
    space = Database(tmp_path, writable=True).space(IDENTITY, "m", "v", layout=SCORES)
    queries, documents = ["q", "q", "r"], ["d", "e", "d"]
    columns = {"query": queries, "document": documents, "query_prefix": "x: "}
    keys = pair_keys(IDENTITY.to_bytes(), ("x: ", "y: "), queries, documents)
    values = np.array([[1.0], [2.0], [3.0]], np.float32)
    space.add(Rows(keys, values, columns | {"document_prefix": "y: "}))
    assert check_space(space).ok
    wrong = pair_keys(IDENTITY.to_bytes(), ("x: ", "y: "), documents, queries)
    space.add(Rows(wrong, values, columns | {"document_prefix": "y: "}))
    report = check_space(space, fix=True)
    assert (report.rows, report.misfits, report.deleted, report.ok) == (6, 3, 3, True)


class OddEncoder:
    """An encoder whose prompts embcache does not know."""

    def __init__(self) -> None:
        from mteb.models import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_keys_over_more_than_prompt_and_text_are_left_alone(tmp_path: Path, task: Any) -> None:
    """CachedEncoder's keys have the call's circumstances in them where prompts are not known."""
    from tests.conftest import loader

    encoder = CachedEncoder(OddEncoder(), cache_path=tmp_path, identity={"v": 1})
    encoder.encode(loader(["a", "bb"]), task_metadata=task, hf_split="test", hf_subset="default")
    (info,) = Database(tmp_path, writable=False).spaces()
    report = check_space(info, fix=True)
    assert report.ok and (report.rows, report.unverified, report.deleted) == (2, 2, 0)


def test_known_prompts_of_cached_encoder_and_vllm_fit(
    tmp_path: Path, make_encoder: Callable[..., Any], make_cross_encoder: Callable[..., Any]
) -> None:
    from tests.conftest import encode, loader, predict

    encode(make_encoder(prompt_dict={"query": "q: "}), ["a", "b"])
    predict(make_cross_encoder(), ["q", "r"], ["d", "e"])
    cached = CachedEncoder(
        OddEncoder(),
        cache_path=tmp_path / "cache",
        identity={"v": 1},
        applied_prompt=lambda task, prompt_type: "query: ",
    )
    task = MockRerankingTask().metadata
    cached.encode(loader(["a", "b"]), task_metadata=task, hf_split="test", hf_subset="default")
    spaces = [*Database(tmp_path / "cache", writable=False).spaces()]
    assert len(spaces) == 3
    for info in spaces:
        report = check_space(info)
        assert report.ok and (report.rows, report.unverified) == (2, 0), folder(info)


def test_lance_cache_fits(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add([{"text": "a"}, {"text": "b"}], np.eye(2, dtype=np.float32))
    cache.save()
    (info,) = Database(tmp_path, writable=False).spaces()
    report = check_space(info)
    assert report.ok and report.unverified == 0


def test_a_renamed_space_is_a_problem_and_nothing_is_deleted(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    renamed = folder(space).with_name(f"other--float32--{'0' * 10}.lance")
    folder(space).rename(renamed)
    report = check_space(Space(Location.of(renamed)), fix=True)
    assert not report.ok and report.repair is None
    assert f"does not end in --{IDENTITY.fingerprint()}.lance" in str(report)
    assert lance.dataset(str(renamed)).count_rows() == 1


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"embcache:identity": Identity("x", "1", "float32").to_json()}, "has the fingerprint"),
        ({"embcache:identity": "{}"}, "unreadable schema metadata"),
        ({"embcache:format_version": "9"}, "another format version than its data files"),
    ],
)
def test_metadata_that_is_not_the_data_files_is_damage(
    open_space: Open, metadata: dict[str, str], said: str
) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    lance.dataset(str(folder(space))).update_schema_metadata(metadata)
    report = check_space(space)
    assert not report.ok and said in str(report)
    assert check_space(space, fix=True).ok
    assert check_space(Space(space.location)).rows == 1


def test_a_newer_format_is_left_alone(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    rows = lance.dataset(str(folder(space))).to_table()
    newer = {**rows.schema.metadata, b"embcache:format_version": b"9"}
    lance.write_dataset(rows.replace_schema_metadata(newer), str(folder(space)), mode="overwrite")
    version = lance.dataset(str(folder(space))).version
    report = check_space(space, fix=True)
    assert not report.ok and report.repair is None and "format version 9" in str(report)
    assert lance.dataset(str(folder(space))).version == version


def test_columns_of_other_types_or_missing(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    data = lance.dataset(str(folder(space))).to_table()
    wide = data.set_column(2, "checksum", data["checksum"].cast(pa.int64(), safe=False))
    for table, said in (
        (data.drop_columns(["checksum"]), "columns are missing: checksum"),
        (wide, "column checksum is int64, not uint64"),
        (data.set_column(1, "vector", pa.array([[1.0]])), "not fixed_size_list"),
    ):
        changed = table.replace_schema_metadata(data.schema.metadata)
        lance.write_dataset(changed, str(folder(space)), mode="overwrite")
        report = check_space(space)
        assert not report.ok and report.rows == 1 and said in str(report)
        assert check_space(space, fix=True).ok
        assert check_space(space).ok and check_space(space).rows == 1


def test_a_damaged_manifest(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    for manifest in (folder(space) / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"\xff" * 100)
    report = check_space(space)
    assert not report.ok and f"Opening version 2 of {folder(space)} failed" in str(report)
    assert "no version of it can be used; 1 data files are there" in str(report)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no space: .*Give the folder of one"):
        check_space(Space(Location.of(tmp_path / "x.lance")))


def test_many_rows_are_deleted_in_few_transactions(open_space: Open) -> None:
    space = open_space()
    rows = make_rows([f"{i}" for i in range(15_000)], dim=2)
    space.add(rows)
    add_blindly(space, rows)
    table = lancedb.connect(str(folder(space).parent)).open_table(space.name)
    before = table.version
    report = check_space(space, fix=True)
    assert report.deleted == report.duplicates == 15_000
    table.checkout_latest()
    assert table.version - before == 2


def test_a_space_without_rows(open_space: Open) -> None:
    space, rows = open_space(), make_rows(["a"])
    space.add(rows)
    space.drop(rows.keys)
    assert check_space(space).ok and check_space(space).rows == 0


def test_a_report_does_not_call_half_a_repair_ok(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    report = check_space(space)
    assert not replace(report, damaged=2, repair=Repair(deleted=1)).ok
    assert replace(report, damaged=2, repair=Repair(deleted=2, sound=True)).ok
    assert not replace(report, problems=("p",)).ok


def test_keys_of_the_documented_formula_fit(open_space: Open) -> None:
    keys = text_keys(IDENTITY.to_bytes(), "", ["", "a\0b"])
    space = open_space()
    columns = {"text": ["", "a\0b"], "prompt": ""}
    space.add(Rows(keys, np.ones((2, 3), np.float32), columns))
    report = check_space(space)
    assert report.ok and report.unverified == 0


def with_canaries(space: Space) -> Space:
    space.add(make_rows(["a", "b"]))
    engine = FakeEngine()
    request = TextRequest(texts=["c"], prompt="query: ", show_progress=False)
    Pipeline(engine, space.identity, space).encode(request)
    return space


def test_canaries_are_shown_and_are_no_rows(open_space: Open) -> None:
    space = with_canaries(open_space())
    report = check_space(space)
    assert report.ok and report.rows == 3
    assert report.canaries == CanaryReport(5, ("query: ",), space.metadata.engine_version)
    assert "canaries: 5 (vllm 1.0; prompts 'query: ')" in str(report)


@pytest.mark.parametrize("kind", ["a bit", "data", "_versions"])
def test_damaged_canaries_are_deleted_and_come_again(open_space: Open, kind: str) -> None:
    space = with_canaries(open_space())
    files = sorted((Path(space.canaries.location.uri) / kind.replace("a bit", "data")).iterdir())
    if kind == "a bit":
        first = space.canaries.refresh()
        values, _ = first.read_all(np.arange(1), first.keys()[:1])
        flip_bit(files[0], files[0].read_bytes().index(values[0].tobytes()) + 3)
    else:
        for path in files:
            path.write_bytes(path.read_bytes()[:50])
    fresh = open_space()
    report = check_space(fresh)
    assert not report.ok and report.rows == 3 and "canaries" in str(report)
    fixed = check_space(fresh, fix=True)
    assert fixed.ok and fixed.rows == 3 and "adds them again" in str(fixed)
    again = with_canaries(open_space())
    assert check_space(again).canaries.count == 0  # nothing was written
    Pipeline(FakeEngine(), again.identity, again).encode(TextRequest(texts=["new"]))
    assert check_space(again).canaries.count == 5


def test_canaries_survive_a_compaction_and_go_with_their_space(open_space: Open) -> None:
    space = with_canaries(open_space())
    for number in range(5):
        space.add(make_rows([f"more {number}"]))
    for prompt in ("a: ", "b: "):
        Pipeline(FakeEngine(), space.identity, space).encode(
            TextRequest(texts=["t"], prompt=prompt)
        )
    assert len(space.canaries.open().fragments) == 3
    compact_space(space, older_than=timedelta(0))
    assert check_space(open_space()).canaries.count == 15
    assert len(space.canaries.open().fragments) == 1
    assert space.location.parent.caches() == []
    assert [one.name for one in Database(space.location.parent, writable=False).spaces()] == [
        space.name
    ]
    space.location.remove()
    assert not space.canaries.location.has_table()


def _file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_bytes(b"junk")


def _folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


def _pipe(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def _link(place: Path) -> None:
    place.unlink()
    place.symlink_to(place.name)


@pytest.mark.parametrize(
    ("where", "how"),
    [
        *((name, _file) for name in ("_versions", "data", "_transactions", "_canaries.lance")),
        *((f"{name}/*", how) for name in ("_versions", "data") for how in (_folder, _pipe, _link)),
        ("_canaries.lance/data/*", _pipe),
    ],
)
def test_what_is_nothing_of_a_table_is_set_aside(
    open_space: Open, where: str, how: Callable[[Path], None]
) -> None:
    space = open_space()
    space.add(make_rows(["a", "b"]))
    space.canaries.add(make_rows(["c"]))
    space.add(make_rows(["d"]))
    (place, *_) = sorted(folder(space).glob(where))
    how(place)
    report = check_space(open_space())
    assert not report.ok and str(place) in str(report) and "fix=True mends" in str(report)
    report = check_space(open_space(), fix=True)
    assert report.ok and report.strangers == (place,) and f"{place} is nothing" in str(report)
    (aside,) = folder(space).parent.glob(".damaged-*")
    inside = Path(folder(space).name, place.relative_to(folder(space)))
    assert os.path.lexists(aside / inside) or os.path.lexists(aside / "rest" / inside)
    open_space().add(make_rows(["new"]))
    assert check_space(open_space()).ok
