from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from embcache import CachedEncoder, ConfigError
from embcache.engine.pools import CallPool, call_pool, without_pool
from tests.conftest import encode


class Process:
    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


class Starting:
    """As far as a pool is concerned, a SentenceTransformer."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.starts = 0

    def start_multi_process_pool(self, devices: list[str]) -> dict[str, Any]:
        self.starts += 1
        self.running.append({"processes": [Process() for _ in devices]})
        return self.running[-1]  # type: ignore[no-any-return]

    def stop_multi_process_pool(self, pool: Any) -> None:
        self.running.remove(pool)


def test_which_calls_have_one() -> None:
    model = Starting()
    for without in ({}, {"device": "cpu"}, {"device": []}, {"pool": None}):
        assert call_pool(model, without) is None
    for having in ({"device": ["cpu"]}, {"pool": {"processes": []}}):
        assert call_pool(model, having) is not None
        assert call_pool(None, having) is None and call_pool(object(), having) is None
    assert model.starts == 0


def test_one_start_however_many_chunks() -> None:
    model = Starting()
    with CallPool(model, ["cpu", "cpu"]) as pool:
        given = {"device": ["cpu", "cpu"], "batch_size": 8, "prompt": "p"}
        for texts, size in ((5, 8), (1000, 50), (10**6, 5000)):
            found = pool.arguments(given, texts, 8)
            assert found == {
                "batch_size": 8, "prompt": "p", "pool": model.running[0], "chunk_size": size
            }  # fmt: skip
        assert pool.arguments({"chunk_size": 3}, 1000, 8)["chunk_size"] == 3
        assert model.starts == 1
    assert not model.running


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_after_a_failure_it_is_another_one(error: BaseException) -> None:
    """The queue of the first may hold vectors of the chunk that failed."""
    model = Starting()
    with CallPool(model, ["cpu"]) as pool:
        first = pool.arguments({}, 1, 1)["pool"]
        pool.failed(error)
        assert not model.running
        assert pool.arguments({}, 1, 1)["pool"] is not first
    assert not model.running and model.starts == 2


def test_the_users_own_pool_is_neither_started_nor_stopped() -> None:
    model, given = Starting(), {"processes": [Process()]}
    with CallPool(model, (), given) as pool:
        assert not pool.start()
        assert pool.arguments({"pool": given}, 1, 1)["pool"] is given
        pool.failed(RuntimeError("one text"))
        assert pool.arguments({"pool": given}, 1, 1)["pool"] is given
        given["processes"][0].alive = False
        pool.failed(RuntimeError("died"))
        with pytest.raises(ConfigError, match=r"The pool that was given \(pool=\) has failed in"):
            pool.arguments({"pool": given}, 1, 1)
    assert model.starts == 0


def test_canaries_need_none() -> None:
    arguments = {"device": ["cpu", "cpu"], "pool": 1, "chunk_size": 2, "batch_size": 3}
    assert without_pool(arguments) == {"batch_size": 3}
    assert without_pool({"device": "cuda:1"}) == {"device": "cuda:1"}


TEXTS = [f"{'some words of a text ' * (i % 7)}number {i}" for i in range(600)]


def wrapper(model_path: str) -> SentenceTransformerEncoderWrapper:
    return SentenceTransformerEncoderWrapper(model_path, device="cpu")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Pools that SentenceTransformers start, real ones."""
    pools: list[Any] = []
    start = SentenceTransformer.start_multi_process_pool

    def counting(self: Any, devices: Any = None) -> Any:
        pools.append(start(self, devices))
        return pools[-1]

    monkeypatch.setattr(SentenceTransformer, "start_multi_process_pool", counting)
    return lambda: pools


@pytest.mark.slow
def test_a_real_pool_is_started_once_a_call(
    model_path: str, tmp_path: Path, counted: Callable[[], list[Any]]
) -> None:
    """With many chunks, equal vectors, the same identity, and none where nothing is missing."""
    alone = np.asarray(SentenceTransformer(model_path, device="cpu").encode(TEXTS))
    encoder = CachedEncoder(wrapper(model_path), tmp_path / "cache")
    task = mteb.get_task("STS13").metadata
    encode(encoder, TEXTS[:3], task_metadata=task)
    pipeline = next(iter(encoder._pipelines.values()))
    pipeline.chunker.adapts, pipeline.chunker.tokens = False, 5000
    vectors = encode(encoder, TEXTS, task_metadata=task, device=["cpu", "cpu"])
    assert (encoder.stats.hits, encoder.stats.encoded) == (3, 597)
    assert np.abs(vectors - alone).max() < 1e-5
    assert len(counted()) == 1
    warm = CachedEncoder(wrapper(model_path), tmp_path / "cache")
    for each in (encoder, warm):
        again = encode(each, TEXTS, task_metadata=task, device=["cpu", "cpu"])
        assert (again == vectors).all() and each.stats.encoded == 0
    assert len(counted()) == 1


@pytest.mark.slow
def test_a_real_pool_of_the_users(
    model_path: str, tmp_path: Path, counted: Callable[[], list[Any]]
) -> None:
    """And a worker that is killed: the user's pool is used no more, and no vector is wrong."""
    wrapped = wrapper(model_path)
    model: Any = wrapped.model
    alone = np.asarray(model.encode(TEXTS[:40]))
    pool = model.start_multi_process_pool(["cpu"])
    encoder = CachedEncoder(wrapped, tmp_path / "cache")
    vectors = encode(encoder, TEXTS[:40], pool=pool)
    assert np.abs(vectors - alone).max() < 1e-5 and len(counted()) == 1
    pool["processes"][0].kill()
    with pytest.raises((RuntimeError, ConfigError), match=r"died unexpectedly|The pool that was"):
        encode(encoder, TEXTS[40:50], pool=pool)
    model.stop_multi_process_pool(pool)


@pytest.mark.slow
def test_a_killed_worker_of_a_real_pool_is_replaced(
    model_path: str,
    tmp_path: Path,
    counted: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped = wrapper(model_path)
    alone = np.asarray(wrapped.model.encode(TEXTS))
    encoder = CachedEncoder(wrapped, tmp_path / "cache")
    real, killed = SentenceTransformer.encode, []

    def encode_and_kill(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pool") and not killed:
            killed.append(kwargs["pool"]["processes"][0])
            killed[0].kill()
            time.sleep(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode", encode_and_kill)
    vectors = encode(encoder, TEXTS, device=["cpu"])
    assert killed and len(counted()) == 2
    assert np.abs(vectors - alone).max() < 1e-5
