"""A damaged space costs nobody their run: what can be read is used, the rest is encoded again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from embcache import CacheError, DamagedSpaceError, EmbcacheError
from embcache.identity.keys import text_keys
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.pipeline.stats import Watcher
from embcache.store import Space
from embcache.tools.check import check_space
from tests.fakes import FakeEngine
from tests.pipeline.test_pipeline import IDENTITY
from tests.pipeline.test_write_errors import encode, open_space, right, small_chunks
from tests.spaces import folder, refused
from tests.store.test_damage import data_files, flip_bit

TEXTS = [f"{'word ' * (i % 7)}{i}" for i in range(40)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of several fragments, one of them with deleted rows."""
    cache = tmp_path_factory.mktemp("sound") / "cache"
    space = open_space(cache)
    for start in range(0, 40, 10):
        encode(Pipeline(FakeEngine(), IDENTITY, space), TEXTS[start : start + 10])
    space.drop(text_keys(IDENTITY.to_bytes(), "", TEXTS[12:14]))
    return cache


@pytest.fixture
def space(sound: Path, tmp_path: Path) -> Space:
    shutil.copytree(sound, tmp_path / "cache")
    return open_space(tmp_path / "cache")


def files(space: Space, kind: str) -> list[Path]:
    return [path for path in sorted((folder(space) / kind).iterdir()) if path.suffix != ".json"]


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    """In the same length, as flips would."""
    assert len(old) == len(new) and old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def newest(space: Space) -> Path:
    return files(space, "_versions")[0]  # by their distance from 2**64


def each(space: Space, kind: str, do: Callable[[Path], None], most: int | None = None) -> None:
    for path in files(space, kind)[:most]:
        do(path)


IN_PART: dict[str, Callable[[Space], None]] = {
    "a data file is missing": lambda s: files(s, "data")[0].unlink(),
    "a data file is empty": lambda s: truncate(files(s, "data")[1], 0),
    "a data file is cut": lambda s: truncate(files(s, "data")[2]),
    "a data file is garbled": lambda s: garble(files(s, "data")[3]),
    "two data files": lambda s: each(s, "data", truncate, 2),
    "a data file is another table's": lambda s: files(s, "data")[0].write_bytes(
        next(folder(s).glob("_canaries.lance/data/*")).read_bytes()
    ),
    "the deletion file is missing": lambda s: files(s, "_deletions")[0].unlink(),
    "the deletion file is garbled": lambda s: garble(files(s, "_deletions")[0]),
    "the newest manifest is cut": lambda s: truncate(newest(s)),
    "the newest manifest is empty": lambda s: truncate(newest(s), 0),
    "the newest manifest is garbled": lambda s: garble(newest(s)),
    "a folder is in the newest manifest's place": lambda s: put_folder(newest(s)),
    "the newest manifest is the canaries'": lambda s: newest(s).write_bytes(
        min(folder(s).glob("_canaries.lance/_versions/*.manifest")).read_bytes()
    ),
    "the newest two manifests": lambda s: each(s, "_versions", truncate, 2),
    "a type in the newest manifest": lambda s: replace_bytes(newest(s), b"uint64", b"uhnt64"),
    "the dimension in it": lambda s: replace_bytes(newest(s), b"list:float:8", b"list:float:9"),
    "the identity in it": lambda s: replace_bytes(newest(s), b"organization", b"orgAnization"),
    "the identity's JSON in it": lambda s: replace_bytes(newest(s), b'"dtype"', b"'dtype\""),
    "what makes it a space": lambda s: replace_bytes(
        newest(s), b"format_version", b"farmat_version"
    ),
    "a path in it": lambda s: replace_bytes(
        newest(s), files(s, "data")[0].name.encode(), b"x" * len(files(s, "data")[0].name)
    ),
    "the canaries": lambda s: garble(min(folder(s).glob("_canaries.lance/_versions/*.manifest"))),
    "the canaries' rows": lambda s: garble(next(folder(s).glob("_canaries.lance/data/*"))),
}
ALL: dict[str, Callable[[Space], None]] = {
    "all data files are missing": lambda s: each(s, "data", Path.unlink),
    "all data files are garbled": lambda s: each(s, "data", garble),
    "all manifests are garbled": lambda s: each(s, "_versions", garble),
    "all manifests are empty": lambda s: each(s, "_versions", lambda path: truncate(path, 0)),
    "_versions is gone": lambda s: shutil.rmtree(folder(s) / "_versions"),
    "data is gone": lambda s: shutil.rmtree(folder(s) / "data"),
    "the dimension everywhere": lambda s: each(
        s, "_versions", lambda p: replace_bytes(p, b"list:float:8", b"list:float:9")
    ),
    "a type everywhere": lambda s: each(
        s, "_versions", lambda p: replace_bytes(p, b"uint64", b"uhnt64")
    ),
    "the identity everywhere": lambda s: each(
        s, "_versions", lambda p: replace_bytes(p, b"organization", b"orgAnization")
    ),
}
DAMAGES = IN_PART | ALL


def bytes_of(cache: Path) -> set[bytes]:
    """Of every file of Lance's, whatever it is called by now."""
    kept = (".lance", ".arrow", ".manifest")
    return {
        path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file() and (path.suffix in kept or ".damaged-" in str(path))
    }


@pytest.mark.parametrize("what", DAMAGES)
def test_vectors_are_right_and_the_cache_is_whole_again(
    what: str, space: Space, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[what](space)
    there = bytes_of(folder(space).parent)
    engine = FakeEngine()
    found, stats = encode(small_chunks(space, engine), TEXTS)
    assert right(found, TEXTS) and stats.unwritten == 0
    assert what not in IN_PART or stats.hits > 0
    assert caplog.records, "the user hears of it"
    assert there <= bytes_of(folder(space).parent), "nothing is deleted or overwritten"
    assert "panicked" not in capfd.readouterr().err
    # Another process, later: all is there now.
    fresh = FakeEngine()
    found, stats = encode(small_chunks(open_space(folder(space).parent), fresh), TEXTS)
    assert right(found, TEXTS) and (stats.encoded, fresh.starts) == (0, 0)


@pytest.mark.parametrize("what", set(DAMAGES) - {"_versions is gone"})
@pytest.mark.parametrize("write", [True, False])
def test_a_run_that_was_open_before_goes_on(what: str, write: bool, space: Space) -> None:
    engine = FakeEngine()
    pipeline = small_chunks(space, engine, write=write)
    assert right(encode(pipeline, TEXTS[:20])[0], TEXTS[:20])
    DAMAGES[what](space)
    for texts in (TEXTS, [*TEXTS, "new"]):
        assert right(encode(pipeline, texts)[0], texts)


@pytest.mark.parametrize("what", DAMAGES)
def test_where_nothing_is_written_nothing_is_changed(what: str, space: Space) -> None:
    DAMAGES[what](space)
    there = {path: path.stat().st_mtime_ns for path in folder(space).rglob("*")}
    found, stats = encode(small_chunks(space, write=False), TEXTS)
    assert right(found, TEXTS) and (stats.hits > 0 or what in ALL)
    assert {path: path.stat().st_mtime_ns for path in folder(space).rglob("*")} == there


@pytest.mark.parametrize("what", set(DAMAGES) - {"the canaries", "the canaries' rows"})
def test_on_miss_raise_and_check_report(what: str, space: Space) -> None:
    DAMAGES[what](space)
    with pytest.raises(EmbcacheError, match=r"organization--name|name--float32|not cached") as e:
        encode(small_chunks(space, on_miss="raise", write=False), TEXTS)
    assert what != "_versions is gone" or isinstance(e.value, DamagedSpaceError)
    assert not check_space(open_space(folder(space).parent)).ok
    assert not list(folder(space).parent.rglob("*.damaged-*"))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_warm_goes_on(what: str, space: Space) -> None:
    DAMAGES[what](space)
    pipeline, request = small_chunks(space), TextRequest(texts=TEXTS, show_progress=False)
    pipeline.refresh()
    keys = request.keys(IDENTITY.to_bytes())
    pipeline.fill(request, keys, watcher=Watcher(), refuse={}.update)
    found, _ = encode(small_chunks(open_space(folder(space).parent)), TEXTS)
    assert right(found, TEXTS)


def test_a_column_that_is_called_otherwise(space: Space) -> None:
    """Vectors are right, and rows can still be written; what has no column is left out."""
    for path in files(space, "_versions"):
        path.write_bytes(path.read_bytes().replace(b"created_at", b"crebted_at"))
    found, stats = encode(small_chunks(space), [*TEXTS, "new"])
    assert right(found, [*TEXTS, "new"]) and stats.unwritten == 0
    assert encode(small_chunks(open_space(folder(space).parent)), [*TEXTS, "new"])[1].encoded == 0


def test_a_newer_format_is_no_damage(space: Space) -> None:
    """Its rows are whole, and only a newer embcache reads them: they stay."""
    dataset = lance.dataset(str(folder(space)))
    dataset.replace_schema_metadata({**metadata(space), "embcache:format_version": "2"})
    there = bytes_of(folder(space))
    with pytest.raises(CacheError, match=r"has format version 2.*Upgrade"):
        encode(small_chunks(open_space(folder(space).parent)), TEXTS)
    assert bytes_of(folder(space)) == there


def metadata(space: Space) -> dict[str, str]:
    raw = lance.dataset(str(folder(space))).schema.metadata
    return {key.decode(): value.decode() for key, value in raw.items()}


def test_what_this_user_may_not_read_is_no_damage(shared_folder: Path) -> None:
    space = open_space(shared_folder)
    encode(small_chunks(space), TEXTS)
    for path in data_files(space):
        path.chmod(0)
    with refused(), pytest.raises(CacheError, match="Permission denied") as error:
        encode(small_chunks(open_space(shared_folder)), TEXTS)
    assert not isinstance(error.value, DamagedSpaceError)
    assert not list(shared_folder.rglob("*.damaged-*"))


def test_two_processes_that_find_the_same_damage(space: Space) -> None:
    """The second finds it mended, and sets nothing aside that the first has made."""
    first, second = (open_space(folder(space).parent) for _ in range(2))
    each(space, "_versions", garble)
    pipelines = [small_chunks(one) for one in (first, second)]
    for pipeline in pipelines:
        assert right(encode(pipeline, TEXTS)[0], TEXTS)
    assert len(list(folder(space).parent.glob("*.damaged-*"))) == 1
    assert len(open_space(folder(space).parent).refresh()) == len(TEXTS)


def test_a_writer_that_has_the_version_that_was_set_aside_in_memory(space: Space) -> None:
    """Its next commit is on top of what was committed meanwhile, not in its place."""
    import lancedb

    theirs = lancedb.connect(str(folder(space).parent)).open_table(space.name)
    rows = theirs.to_arrow().slice(0, 1)
    truncate(newest(space))
    encode(small_chunks(space), [*TEXTS, "new"])
    theirs.add(rows)
    fresh = FakeEngine()
    assert right(encode(small_chunks(open_space(folder(space).parent), fresh), TEXTS)[0], TEXTS)
    assert fresh.starts == 0


def test_corrupt_rows_beside_a_lost_file(space: Space) -> None:
    """They are dropped, although Lance cannot look for their keys in every file."""
    from tests.pipeline.test_pipeline import damage

    damage(space, TEXTS[3])
    lost = next(p for p in files(space, "data") if TEXTS[35].encode() in p.read_bytes())
    truncate(lost)
    assert right(encode(small_chunks(space), TEXTS)[0], TEXTS)
    fresh = FakeEngine()
    found, _ = encode(small_chunks(open_space(folder(space).parent), fresh), TEXTS)
    assert right(found, TEXTS) and fresh.starts == 0


@pytest.mark.parametrize("seed", range(30))
def test_flipped_manifests(seed: int, space: Space, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever a bit flips, in the newest or in all: right vectors, or an error of embcache's."""
    rng = random.Random(seed)
    path = newest(space)
    for _ in range(rng.choice((1, 1, 3))):
        flip_bit(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    if seed % 2:
        for other in files(space, "_versions")[1:]:
            other.unlink()
    check_space(space)
    assert right(encode(small_chunks(open_space(folder(space).parent)), TEXTS)[0], TEXTS)
    assert "panicked" not in capfd.readouterr().err


def test_a_version_is_not_used_whose_files_are_lost_too(
    space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before a deletion names the same data files."""
    each(space, "data", Path.unlink)
    newest(space).write_bytes(b"")
    found, _ = encode(small_chunks(space), TEXTS)
    (told,) = [record.getMessage() for record in caplog.records if "out of" not in record.name]
    assert right(found, TEXTS) and "again. What is damaged is set aside" in told
    assert "can be read" not in told.partition("bring back")[0]


def test_lost_canaries_are_told_of_once_and_removed(
    space: Space, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder(space) / "_canaries.lance" / "_versions")
    pipeline = small_chunks(space)
    for texts in ([*TEXTS, "new"], [*TEXTS, "newer"]):
        assert right(encode(pipeline, texts)[0], texts)
    assert caplog.text.count("has data files and no manifest") == 1
    assert not check_space(open_space(folder(space).parent)).ok
    assert check_space(open_space(folder(space).parent), fix=True).ok
    assert not (folder(space) / "_canaries.lance").exists()
