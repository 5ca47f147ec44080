"""LanceCache under mteb's own CachedEmbeddingWrapper, and what it does better than NumpyCache."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import lancedb
import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from mteb.mocks.mock_tasks import MockMultiChoiceTask, MockRetrievalTask
from mteb.models.cache_wrappers import CacheBackendProtocol, CachedEmbeddingWrapper
from mteb.models.cache_wrappers.cache_backends import NumpyCache
from mteb.models.model_implementations.random_baseline import RandomEncoderBaseline
from mteb.types import PromptType
from PIL import Image
from torch.utils.data import DataLoader

from embcache import (
    Cache,
    CacheError,
    CacheWriteError,
    ConfigError,
    InputError,
    LanceCache,
    NonFiniteError,
)
from embcache.store import Space
from tests.conftest import ROOT, loader
from tests.fakes import fake_vector
from tests.spaces import no_hard_links

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:mteb")  # NumpyCache's, of new folders

both = pytest.mark.parametrize("backend", [NumpyCache, LanceCache])
DIM = 64  # wide enough for Lance to store the vectors' bytes as they are


class CountingModel(RandomEncoderBaseline):
    """Random vectors by content; keeps the texts of every call."""

    def __init__(self) -> None:
        super().__init__("counting", None, embed_dim=DIM)
        self.calls: list[list[Any]] = []

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        columns = inputs.dataset.column_names
        self.calls.append(inputs.dataset["text"][:] if "text" in columns else [None] * len(inputs))
        return super().encode(inputs, **kwargs)


def encode(
    model: Any, inputs: Any, name: str = "STS13", prompt_type: Any = None, **metadata: Any
) -> np.ndarray:
    return model.encode(
        loader(inputs) if isinstance(inputs, list) else inputs,
        task_metadata=mteb.get_task("STS13").metadata.model_copy(update={"name": name, **metadata}),
        hf_split="test",
        hf_subset="default",
        prompt_type=prompt_type,
    )


def items(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def vectors(*texts: str, dim: int = DIM) -> np.ndarray:
    return np.stack([fake_vector(text, dim) for text in texts])


def filled(path: Path, *texts: str, **kwargs: Any) -> LanceCache:
    cache = LanceCache(path, **kwargs)
    cache.add(items(*texts), vectors(*texts))
    cache.save()
    return cache


def holds(cache: LanceCache, *texts: str) -> bool:
    """All of them, each with its own vector, to the bit."""
    found = [cache.get_vector(item) for item in items(*texts)]
    return all(
        vector is not None and vector.tobytes() == fake_vector(text, DIM).tobytes()
        for vector, text in zip(found, texts, strict=True)
    )


def table(path: Path) -> lance.LanceDataset:
    (folder,) = path.glob("*.lance")
    return lance.dataset(str(folder))


def flip_byte_of_vector(path: Path, vector: np.ndarray) -> None:
    """In the one data file that holds it."""
    raw = vector.tobytes()
    (file,) = (f for f in path.glob("**/data/*.lance") if raw in f.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(raw) + 5] ^= 0xFF
    file.write_bytes(content)


# What mteb's own backends do as well.


@both
def test_second_run_calls_no_model(backend: Any, tmp_path: Path) -> None:
    model = CountingModel()
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=backend)
    plain = encode(CountingModel(), ["a", "b", "c"])
    cold, warm = encode(wrapped, ["a", "b", "c"]), encode(wrapped, ["a", "b", "c"])
    assert model.calls == [["a", "b", "c"]]
    assert cold.tobytes() == warm.tobytes() == plain.tobytes()


@both
def test_another_process_later_calls_no_model(backend: Any, tmp_path: Path) -> None:
    first = encode(CachedEmbeddingWrapper(CountingModel(), tmp_path, backend), ["a", "b"])
    model = CountingModel()
    again = encode(CachedEmbeddingWrapper(model, tmp_path, backend), ["b", "a"])
    assert not model.calls and again[::-1].tobytes() == first.tobytes()


@both
def test_only_new_texts_go_to_the_model(backend: Any, tmp_path: Path) -> None:
    model = CountingModel()
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=backend)
    encode(wrapped, ["a", "b"])
    mixed = encode(wrapped, ["new", "b", "newer", "a"])
    assert model.calls == [["a", "b"], ["new", "newer"]]
    assert mixed.tobytes() == encode(CountingModel(), ["new", "b", "newer", "a"]).tobytes()


@both
def test_tasks_and_prompt_types_share_nothing(backend: Any, tmp_path: Path) -> None:
    model = CountingModel()
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=backend)
    for task, prompt_type in 2 * [("One", None), ("Two", None), ("One", PromptType.query)]:
        encode(wrapped, ["a"], task, prompt_type)
    assert len(model.calls) == 3
    assert all(any((tmp_path / folder).glob("*.*")) for folder in ("One", "Two", "One/query"))


@both
def test_duplicates_some_of_them_cached(backend: Any, tmp_path: Path) -> None:
    wrapped = CachedEmbeddingWrapper(CountingModel(), tmp_path, cache_backend=backend)
    encode(wrapped, ["a", "b"])
    texts = ["new", "a", "new", "a", "newer", "b", "new"]
    plain = encode(CountingModel(), texts)
    assert encode(wrapped, texts).tobytes() == plain.tobytes()
    reopened = CachedEmbeddingWrapper(CountingModel(), tmp_path, cache_backend=backend)
    assert encode(reopened, texts).tobytes() == plain.tobytes()


@pytest.mark.parametrize("make_task", [MockMultiChoiceTask, MockRetrievalTask])
def test_mteb_evaluates_with_the_same_scores(
    make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as with NumpyCache: the wrapper prepares a corpus twice, so plain ones differ."""

    def evaluate(backend: Any) -> tuple[str, int]:
        calls.clear()
        wrapped = CachedEmbeddingWrapper(model, tmp_path / backend.__name__, backend)
        (result,) = mteb.evaluate(wrapped, make_task(), cache=None, show_progress_bar=False)
        return repr(result.scores), len(calls)  # repr: there are NaN among them

    calls: list[Any] = []
    model = mteb.get_model("mteb/baseline-random-encoder")
    plain = model.encode
    monkeypatch.setattr(model, "encode", lambda *a, **kw: calls.append(a) or plain(*a, **kw))
    scores, cold_calls = evaluate(NumpyCache)
    assert cold_calls > 0
    assert evaluate(LanceCache) == (scores, cold_calls)
    assert evaluate(LanceCache) == evaluate(NumpyCache) == (scores, 0)
    folder = tmp_path / "LanceCache" / make_task().metadata.name
    assert {path.name for path in folder.iterdir()} >= {"query", "document"}


@both
def test_is_what_the_protocol_asks_for(backend: Any, tmp_path: Path) -> None:
    assert isinstance(backend(tmp_path), CacheBackendProtocol)


@both
def test_images_alone_and_beside_text(backend: Any, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    things = [{"image": red}, {"image": blue}, {"text": "a", "image": red}, {"text": "a"}]
    matrix = vectors("1", "2", "3", "4")
    cache = backend(tmp_path)
    cache.add(things, matrix)
    cache.save()
    again = backend(tmp_path)
    again.load()
    assert np.stack([again.get_vector(item) for item in things]).tobytes() == matrix.tobytes()
    assert {"text": "a", "image": blue} not in again
    assert again.get_vector({"text": "b", "image": red}) is None


@both
def test_images_through_the_wrapper(backend: Any, tmp_path: Path) -> None:
    rows = {"image": [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "red")]}
    inputs = DataLoader(Dataset.from_dict(rows))
    model = CountingModel()
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=backend)
    cold, warm = (encode(wrapped, inputs, modalities=["image"]) for _ in range(2))
    assert len(model.calls) == 1 and cold.tobytes() == warm.tobytes()
    assert (cold[0] == cold[2]).all() and (cold[0] != cold[1]).any()


# What comes back.


def test_vectors_come_back_to_the_bit(tmp_path: Path) -> None:
    extremes = np.array([[0.0, -0.0, 1e-45, -1e-38, np.finfo(np.float32).max, 1 / 3]], np.float32)
    cache = LanceCache(tmp_path)
    cache.add(items("a"), extremes)
    for opened in (cache, LanceCache(tmp_path)):
        cache.save()
        opened.load()
        found = opened.get_vector({"text": "a"})
        assert found is not None and found.dtype == np.float32 and found.shape == (6,)
        assert found.tobytes() == extremes.tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.from_numpy(vectors("a", "b")).to(dtype).requires_grad_()
    cache = LanceCache(tmp_path)
    cache.add(items("a", "b"), tensor)
    cache.save()
    found = np.stack([LanceCache(tmp_path).get_vector(item) for item in items("a", "b")])
    assert found.tobytes() == tensor.detach().float().numpy().tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, ">f4"])
def test_arrays_become_float32(dtype: Any, tmp_path: Path) -> None:
    matrix = (100 * vectors("a", "b") % 100).astype(dtype)
    cache = LanceCache(tmp_path)
    cache.add(items("a", "b"), matrix[:, ::2])
    cache.save()
    found = np.stack([LanceCache(tmp_path).get_vector(item) for item in items("a", "b")])
    assert found.tobytes() == matrix[:, ::2].astype(np.float32).tobytes()


def test_one_vector_without_a_row_dimension(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a"), fake_vector("a", DIM))
    assert holds(cache, "a")


def test_neither_argument_nor_result_is_shared_memory(tmp_path: Path) -> None:
    matrix = vectors("a")
    cache = LanceCache(tmp_path)
    cache.add(items("a"), matrix)
    matrix[:] = 0
    cache.get_vector({"text": "a"})[:] = 0  # type: ignore[index]
    assert holds(cache, "a")
    cache.save()
    cache.get_vector({"text": "a"})[:] = 0  # type: ignore[index]
    assert holds(cache, "a")


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled", "every third", "mixed"])
def test_reading_in_any_order(many: Path, order: str) -> None:
    """Reading ahead never gives a neighbour's vector."""
    count, rng = 6000, random.Random(5)
    run = list(range(count))
    orders = {
        "forward": run,
        "backward": run[:5500:-1] + run[500::-1],
        "shuffled": rng.choices(run, k=800),
        "every third": run[::9],
        "mixed": run[:50] + run[4090:4100] + [7, 7, 8, 9, 9] + run[3900:4200] + run[-3:] + run[:20],
    }
    cache = LanceCache(many)
    for i in orders[order]:
        vector = cache.get_vector({"text": f"text {i}"})
        assert vector is not None and vector.tobytes() == fake_vector(f"text {i}").tobytes(), i
        if i % 97 == 0:
            assert cache.get_vector({"text": f"no text {i}"}) is None


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 items in three fragments."""
    path = tmp_path_factory.mktemp("many")
    cache = LanceCache(path)
    texts = [f"text {i}" for i in range(6000)]
    for start, stop in ((0, 2000), (2000, 4000), (4000, 6000)):
        cache.add(items(*texts[start:stop]), vectors(*texts[start:stop], dim=8))
        cache.save()
    return path


@pytest.mark.parametrize("text", ["", " ", "\0", "emoji 😀", "line\nbreak", "x" * 100_000])
def test_odd_texts(text: str, tmp_path: Path) -> None:
    filled(tmp_path, text, text + "!")
    assert holds(LanceCache(tmp_path), text, text + "!")


def test_a_text_that_reads_like_an_images_key(tmp_path: Path) -> None:
    from mteb._content_hashes import hash_item

    image = {"image": Image.new("RGB", (4, 4), "red")}
    cache = filled(tmp_path, hash_item(image))
    assert image not in cache and cache.get_vector(image) is None


# Adding and saving.


def test_the_vector_that_was_first_counts(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a", "b", "a"), np.concatenate((vectors("a", "b"), vectors("other"))))
    cache.add(items("a"), vectors("another"))
    assert len(cache) == 2 and holds(cache, "a", "b")
    cache.save()
    cache.add(items("b"), vectors("yet another"))
    cache.save()
    assert len(cache) == 2 and holds(cache, "a", "b")
    assert table(tmp_path).count_rows() == 2


def test_nothing_is_on_disk_before_save(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a"), vectors("a"))
    assert {"text": "a"} in cache and holds(cache, "a") and len(cache) == 1
    assert {"text": "a"} not in LanceCache(tmp_path)


def test_nothing_to_save(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.save()
    cache.close()
    assert not list(tmp_path.iterdir())
    filled(tmp_path, "a").save()
    assert table(tmp_path).count_rows() == 1


def test_the_wrapper_goes_on_after_close(tmp_path: Path) -> None:
    """With NumpyCache that is an error."""
    model = CountingModel()
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=LanceCache)
    first = encode(wrapped, ["a", "b"])
    wrapped.close()
    wrapped.close()
    assert encode(wrapped, ["a", "b"]).tobytes() == first.tobytes()
    assert len(model.calls) == 1


def test_use_after_close(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a"), vectors("a"))
    cache.close()
    assert holds(LanceCache(tmp_path), "a"), "close saves"
    assert holds(cache, "a") and {"text": "a"} in cache and len(cache) == 1
    cache.add(items("b"), vectors("b"))
    cache.close()
    cache.load()
    assert holds(cache, "a", "b")


def test_use_after_close_and_after_anothers_deletion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it knew of the table's rows before it was closed holds no longer."""
    cache = filled(tmp_path, "a", "b", "c")
    cache.close()
    delete_row(tmp_path, "a")
    assert holds(cache, "b", "c")
    assert "checksum" not in caplog.text


def test_a_failed_save_after_anothers_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(tmp_path, "a", "b", "c")
    delete_row(tmp_path, "a")
    cache.add(items("d"), vectors("d"))
    with monkeypatch.context() as patched:
        patched.setattr(Space, "add", fail)
        with pytest.raises(OSError, match="No space left"):
            cache.save()
    assert holds(cache, "b", "c", "d")
    assert "checksum" not in caplog.text


def delete_row(path: Path, text: str) -> None:
    (folder,) = path.glob("*.lance")
    lancedb.connect(str(path)).open_table(folder.stem).delete(f"text = '{text}'")


def fail(*_: Any) -> None:
    raise OSError("No space left on device")


def test_a_save_that_fails_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a", "b"), vectors("a", "b"))
    with monkeypatch.context() as patched:
        patched.setattr(Space, "add", fail)
        with pytest.raises(OSError, match="No space left"):
            cache.save()
    assert len(LanceCache(tmp_path)) == 0 and holds(cache, "a", "b")
    cache.save()
    assert holds(LanceCache(tmp_path), "a", "b")


def test_a_save_that_fails_after_its_commit_makes_no_second_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Space.add

    def add_then_fail(space: Space, rows: Any) -> None:
        add(space, rows)
        fail()

    cache = LanceCache(tmp_path)
    cache.add(items("a", "b"), vectors("a", "b"))
    with monkeypatch.context() as patched:
        patched.setattr(Space, "add", add_then_fail)
        with pytest.raises(OSError, match="No space left"):
            cache.save()
    cache.save()
    assert table(tmp_path).count_rows() == 2 and holds(cache, "a", "b")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_with_all_that_came_with_it(value: float, tmp_path: Path) -> None:
    matrix = vectors("a", "b")
    matrix[1, 3] = value
    cache = LanceCache(tmp_path)
    with pytest.raises(NonFiniteError, match=r"item 1, \{'text': 'b'\}, holds NaN or infinity"):
        cache.add(items("a", "b"), matrix)
    cache.save()
    assert len(cache) == 0 and {"text": "a"} not in cache


def test_another_dimension_is_refused(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a"), vectors("a"))
    for opened in (cache, filled(tmp_path, "a"), LanceCache(tmp_path)):
        with pytest.raises(CacheError, match=r"holds vectors of 64 components, and these have 8"):
            opened.add(items("b"), vectors("b", dim=8))
        opened.add(items("b"), vectors("b"))


def test_another_dimension_from_another_process_is_refused(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    cache.add(items("a"), vectors("a", dim=8))
    filled(tmp_path, "b")
    with pytest.raises(CacheError, match=r"holds vectors of 64 components, .* have 8"):
        cache.save()
    assert holds(LanceCache(tmp_path), "b")


def test_several_vectors_an_item_are_refused(tmp_path: Path) -> None:
    """Late interaction: refused before there is a table in the way of the next model."""
    cache = LanceCache(tmp_path)
    with pytest.raises(InputError, match=r"\(2, 3, 8\)"):
        cache.add(items("a", "b"), np.zeros((2, 3, 8), np.float32))
    cache.save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_vectors_as_items(count: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"2 items and {count} vectors"):
        LanceCache(tmp_path).add(items("a", "b"), np.zeros((count, DIM)))


def test_an_item_of_nothing_known_is_refused(tmp_path: Path) -> None:
    cache = LanceCache(tmp_path)
    with pytest.raises(InputError, match=r"needs 'text', 'image', .* not only \['id'\]"):
        cache.add([{"id": "1"}], vectors("a"))
    with pytest.raises(InputError, match=r"needs 'text', 'image', .* not only \['id'\]"):
        cache.get_vector({"id": "1"})
    assert len(cache) == 0


def test_other_columns_are_no_part_of_the_key(tmp_path: Path) -> None:
    """As in mteb: a document's id and title do not matter beside its text."""
    cache = filled(tmp_path, "a")
    assert {"id": "7", "title": "t", "text": "a"} in cache


def test_no_directory() -> None:
    with pytest.raises(ConfigError, match=r"LanceCache needs a directory"):
        LanceCache()


def test_the_directory_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file' is a file"):
        LanceCache(tmp_path / "file")


def test_the_directory_may_be_a_string_and_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = LanceCache("some/where")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    cache.add(items("a"), vectors("a"))
    cache.save()
    assert holds(LanceCache(tmp_path / "some" / "where"), "a")


# On disk.


def test_the_text_column(tmp_path: Path) -> None:
    cache = filled(tmp_path, "a", "b")
    cache.add([{"text": "c", "image": Image.new("RGB", (2, 2))}], vectors("c"))
    cache.save()
    rows = table(tmp_path).to_table().to_pylist()
    assert [row["text"] for row in rows] == ["a", "b", None]
    assert {row["prompt"] for row in rows} == {None}


def test_no_text_column(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b", store_text=False)
    assert "text" not in table(tmp_path).schema.names
    with_text = LanceCache(tmp_path)  # as the table was begun, whatever is said later
    with_text.add(items("c"), vectors("c"))
    with_text.save()
    assert "text" not in table(tmp_path).schema.names
    assert holds(LanceCache(tmp_path), "a", "b", "c")


def test_two_caches_can_be_compared(tmp_path: Path) -> None:
    filled(tmp_path / "a", "x", "y", "z")
    filled(tmp_path / "b", "y", "z")
    found = Cache(tmp_path / "a").space().compare(Cache(tmp_path / "b").space())
    assert (found.shared, found.only_a, found.only_b) == (2, 1, 0)
    assert found.cosine_min == 1.0


def test_first_committed_counts_after_compaction_too(tmp_path: Path) -> None:
    """Compaction may move a fragment behind a younger one that holds the same item."""
    one, two = LanceCache(tmp_path), LanceCache(tmp_path)
    one.add(items("a", "b", "c"), vectors("a", "b", "c"))
    two.add(items("a", "d"), vectors("late", "d"))
    commit_at_once(one, two)
    delete_row(tmp_path, "c")
    before = [row["text"] for row in table(tmp_path).to_table().to_pylist()]
    table(tmp_path).optimize.compact_files(target_rows_per_fragment=2)
    after = [row["text"] for row in table(tmp_path).to_table().to_pylist()]
    assert before == ["a", "b", "a", "d"] and after == ["a", "d", "a", "b"]
    assert holds(LanceCache(tmp_path), "a", "b", "d")


def commit_at_once(*caches: LanceCache) -> None:
    """As when none of them saw the others' rows before it wrote its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Space, "refresh", lambda space, **_: space.snapshot)
        for cache in caches:
            cache.save()
    for cache in caches:
        cache.load()


@pytest.mark.parametrize("which", range(3))
def test_a_damaged_row_is_encoded_again(
    which: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a", "b", "c"]
    expected = encode(CachedEmbeddingWrapper(CountingModel(), tmp_path, LanceCache), texts)
    flip_byte_of_vector(tmp_path, expected[which])
    model = CountingModel()
    again = encode(CachedEmbeddingWrapper(model, tmp_path, LanceCache), texts)
    assert model.calls == [[texts[which]]] and again.tobytes() == expected.tobytes()
    assert caplog.text.count("fails its checksum (damaged on disk)") == 1
    encode(CachedEmbeddingWrapper(model, tmp_path, LanceCache), texts)
    assert len(model.calls) == 1


def test_a_damaged_row_gives_none_and_leaves_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, "a", "b", "c")
    flip_byte_of_vector(tmp_path, fake_vector("b", DIM))
    cache = LanceCache(tmp_path)
    assert {"text": "b"} in cache
    with caplog.at_level(logging.WARNING, "embcache"):
        assert cache.get_vector({"text": "b"}) is None
    assert "fails its checksum" in caplog.text and str(tmp_path) in caplog.text
    assert {"text": "b"} not in cache and len(cache) == 2 and holds(cache, "a", "c")
    assert {"text": "b"} not in LanceCache(tmp_path)
    cache.add(items("b"), vectors("b"))
    cache.save()
    assert holds(LanceCache(tmp_path), "a", "b", "c")


def test_anothers_repair_is_not_undone(tmp_path: Path) -> None:
    """A process that sees the damaged row in its old version looks at the newest before it acts."""
    cache = filled(tmp_path, "a", "b")
    flip_byte_of_vector(tmp_path, fake_vector("a", DIM))
    other = LanceCache(tmp_path)
    assert other.get_vector({"text": "a"}) is None
    other.add(items("a"), vectors("a"))
    other.save()
    assert holds(cache, "a", "b")
    assert holds(LanceCache(tmp_path), "a", "b")


def test_damage_does_not_lose_what_is_not_saved_yet(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b")
    flip_byte_of_vector(tmp_path, fake_vector("a", DIM))
    cache = LanceCache(tmp_path)
    cache.add(items("c"), vectors("c"))
    assert cache.get_vector({"text": "a"}) is None
    assert holds(cache, "b", "c")
    cache.save()
    assert holds(LanceCache(tmp_path), "b", "c")


# Several processes.


def test_two_handles_the_first_to_commit_counts(tmp_path: Path) -> None:
    one, two = LanceCache(tmp_path), LanceCache(tmp_path)
    one.add(items("a", "b"), vectors("a", "b"))
    two.add(items("b", "c"), vectors("late", "c"))
    one.save()
    two.save()
    one.load()
    assert holds(one, "a", "b", "c") and holds(two, "a", "b", "c")
    assert table(tmp_path).count_rows() == 3


def test_two_handles_that_commit_at_once(tmp_path: Path) -> None:
    one, two = LanceCache(tmp_path), LanceCache(tmp_path)
    one.add(items("a", "b"), vectors("a", "b"))
    two.add(items("b", "c"), vectors("late", "c"))
    commit_at_once(one, two)
    assert table(tmp_path).count_rows() == 4, "the case was not made"
    for cache in (one, two, LanceCache(tmp_path)):
        assert holds(cache, "a", "b", "c") and len(cache) == 3


# Without embcache/__init__ and tests.fakes, which import mteb: that takes seconds a process.
_PROCESS = f"""
import hashlib, sys, types
package = types.ModuleType("embcache")
package.__path__ = ["src/embcache"]
sys.modules["embcache"] = package
import lancedb
import numpy as np
from embcache.encoders.lance_cache import LanceCache
{inspect.getsource(fake_vector)}
"""

_SAVE_IN_A_LOOP = """
path, first = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
input()
cache = LanceCache(path)
for batch in range(first, first + 2000):
    texts = [f"text {batch} {i}" for i in range(20)]
    cache.add([{"text": text} for text in texts], np.stack([fake_vector(t, 64) for t in texts]))
    cache.save()
    print(batch, flush=True)
"""

# Every process has vectors of its own: whose a text has tells who was first.
_SAVE_BESIDE_OTHERS = """
path, me = sys.argv[1], sys.argv[2]
cache = LanceCache(path)
texts = [f"text {i}" for i in range(300)]
print("ready", flush=True)
input()
for start in range(0, 300, 30):
    some = texts[start : start + 30] + [f"only {me} {start}"]
    matrix = np.stack([fake_vector(me + text, 64) for text in some])
    cache.add([{"text": text} for text in some], matrix)
    cache.save()
print("saved", flush=True)
input()
cache.load()
found = [cache.get_vector({"text": text}) for text in texts]
print(hashlib.sha256(np.stack(found).tobytes()).hexdigest(), flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Processes that have imported everything; ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_(code: str, *arguments: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ,
        )
        processes.append(process)
        return process

    yield start_
    for process in processes:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()}"
    return line.strip()


def test_what_was_acknowledged_before_a_kill_is_there(tmp_path: Path, start: Start) -> None:
    rng = random.Random(3)
    acknowledged: list[int] = []
    processes = [start(_SAVE_IN_A_LOOP, tmp_path, first) for first in (0, 10_000, 20_000)]
    for process in processes:
        assert heard(process) == "ready"
        tell(process)
        time.sleep(rng.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].split()
        acknowledged += map(int, lines)
    assert acknowledged, "the kills were all too early"
    cache = LanceCache(tmp_path)
    for batch in acknowledged:
        assert holds(cache, *(f"text {batch} {i}" for i in range(20))), batch
    rows = table(tmp_path).to_table(columns=["text"])["text"].to_pylist()
    batches = [int(text.split()[1]) for text in rows]
    assert all(batches.count(batch) == 20 for batch in set(batches)), "half a save is there"
    assert len(set(batches)) <= len(acknowledged) + 3  # a kill leaves one unacknowledged at most
    cache.add(items("after"), vectors("after"))
    cache.save()
    assert holds(LanceCache(tmp_path), "after")


def test_several_processes_save_at_once(tmp_path: Path, start: Start) -> None:
    """From nothing, over the same texts."""
    processes = [start(_SAVE_BESIDE_OTHERS, tmp_path, name) for name in ("A", "B", "C")]
    for word in ("ready", "saved"):
        assert [heard(process) for process in processes] == [word] * 3
        for process in processes:
            tell(process)
    seen = {heard(process) for process in processes}
    assert len(seen) == 1, "the processes read different vectors"
    cache = LanceCache(tmp_path)
    assert len(cache) == 300 + 3 * 10
    rows = table(tmp_path).scanner(columns=["text", "vector"], with_row_id=True).to_table()
    last_to_first = sorted(rows.to_pylist(), key=lambda row: -row["_rowid"])
    first = {row["text"]: row["vector"] for row in last_to_first}
    assert len(first) == len(cache)
    for text, vector in first.items():
        assert cache.get_vector({"text": text}).tolist() == vector, text  # type: ignore[union-attr]


# All of it against a dict.

names = st.integers(0, 25).map(str)


class CacheAgainstDicts(RuleBasedStateMachine):
    """Two handles on one directory; `seen` is what each has loaded of what is committed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.committed: dict[str, np.ndarray] = {}
        self.handles = [LanceCache(self.folder.name), LanceCache(self.folder.name)]
        self.seen: list[dict[str, np.ndarray]] = [{}, {}]
        self.pending: list[dict[str, np.ndarray]] = [{}, {}]
        self.counter = 0

    @rule(handle=st.integers(0, 1), texts=st.lists(names, max_size=12))
    def add(self, handle: int, texts: list[str]) -> None:
        self.counter += 1
        matrix = np.full((len(texts), 3), self.counter, np.float32)
        matrix[:, 1] = np.arange(len(texts))
        self.handles[handle].add(items(*texts), matrix)
        for text, vector in zip(texts, matrix, strict=True):
            if text not in self.seen[handle]:
                self.pending[handle].setdefault(text, vector)

    @rule(handle=st.integers(0, 1))
    def save(self, handle: int) -> None:
        self.handles[handle].save()
        if self.pending[handle]:
            self.committed = self.pending[handle] | self.committed
            self.pending[handle] = {}
            self.seen[handle] = dict(self.committed)

    @rule(handle=st.integers(0, 1))
    def load(self, handle: int) -> None:
        self.handles[handle].load()
        self.seen[handle] = dict(self.committed)

    @rule(handle=st.integers(0, 1))
    def close(self, handle: int) -> None:
        self.handles[handle].close()
        self.save(handle)
        self.load(handle)

    @rule(handle=st.integers(0, 1))
    def reopen(self, handle: int) -> None:
        self.handles[handle] = LanceCache(self.folder.name)
        self.seen[handle], self.pending[handle] = dict(self.committed), {}

    @rule()
    def compact(self) -> None:
        for folder in Path(self.folder.name).glob("*.lance"):
            lancedb.connect(self.folder.name).open_table(folder.stem).optimize()

    @rule(handle=st.integers(0, 1), wanted=st.lists(names, max_size=20))
    def look(self, handle: int, wanted: list[str]) -> None:
        known = self.seen[handle] | self.pending[handle]
        for text, item in zip(wanted, items(*wanted), strict=True):
            found = self.handles[handle].get_vector(item)
            assert (item in self.handles[handle]) == (found is not None) == (text in known)
            assert found is None or found.tobytes() == known[text].tobytes()

    @invariant()
    def as_many_as_known(self) -> None:
        for handle, cache in enumerate(self.handles):
            assert len(cache) == len(self.seen[handle] | self.pending[handle])

    @invariant()
    def all_of_one_handle_is_there(self) -> None:
        self.look(0, sorted(self.seen[0] | self.pending[0]))

    def teardown(self) -> None:
        self.folder.cleanup()


TestCacheAgainstDicts = CacheAgainstDicts.TestCase
TestCacheAgainstDicts.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_table_that_cannot_be_written_is_found_out_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(CachedEmbeddingWrapper(CountingModel(), tmp_path, cache_backend=LanceCache), ["a"])
    no_hard_links(monkeypatch)
    model = CountingModel()
    strict = functools.partial(LanceCache, on_write_error="raise")
    wrapped = CachedEmbeddingWrapper(model, tmp_path, cache_backend=strict)
    encode(wrapped, ["a"])
    with pytest.raises(CacheError, match="a hard link is refused"):
        encode(wrapped, ["a", "b"])
    assert model.calls == []


def test_a_table_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        no_hard_links(patch)
        patch.setattr(Space, "add", cannot_be_written)
        cache, items = LanceCache(tmp_path), [{"text": text} for text in "abc"]
        assert cache.get_vector(items[0]) is None
        vectors = np.stack([fake_vector(text, DIM) for text in "abc"])
        cache.add(items, vectors)
        cache.save()
        cache.save()
        assert (cache.get_vector(items[1]) == vectors[1]).all()
    assert sum("cannot be written" in r.getMessage() for r in caplog.records) == 1
    cache.save()
    assert (LanceCache(tmp_path).get_vector(items[2]) == vectors[2]).all()


def cannot_be_written(*_: Any) -> None:
    raise CacheWriteError("No space left on device")


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_damaged_data_file_costs_its_rows(tmp_path: Path, keep: float) -> None:
    cache = LanceCache(tmp_path)
    for text in "ab":
        cache.add([{"text": text}], fake_vector(text, DIM)[None])
        cache.save()
    for text in "ab":  # one whose rows are read, and one that is opened after it
        path = next(
            p
            for p in tmp_path.rglob("data/*")
            if fake_vector(text, DIM).tobytes() in p.read_bytes()
        )
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        cache = cache if text == "a" else LanceCache(tmp_path)
        found = [cache.get_vector({"text": one}) for one in "ab"]
        assert found[0] is None and (found[1] is None) == (text == "b")
        assert len(cache) == (text == "a")
    cache.add([{"text": "a"}], fake_vector("a", DIM)[None])
    cache.save()
    assert (LanceCache(tmp_path).get_vector({"text": "a"}) == fake_vector("a", DIM)).all()


def test_reading_ahead_into_a_damaged_file_costs_no_other_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for text in "abc":  # five rows each, in a file of its own
        cache = LanceCache(tmp_path)
        vectors = np.stack([fake_vector(f"{text}{i}", DIM) for i in range(5)])
        cache.add([{"text": f"{text}{i}"} for i in range(5)], vectors)
        cache.close()
    last = fake_vector("c0", DIM).tobytes()
    (path,) = [path for path in tmp_path.rglob("data/*") if last in path.read_bytes()]
    path.write_bytes(b"")
    texts = [f"{text}{i}" for text in "abc" for i in range(5)]
    cache = LanceCache(tmp_path)
    found = [cache.get_vector({"text": text}) for text in texts]
    assert [text for text, one in zip(texts, found, strict=True) if one is None] == texts[10:]
    assert "fails its checksum" not in caplog.text and len(cache) == 10
