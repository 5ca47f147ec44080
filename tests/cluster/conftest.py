"""A real Ray on this machine, and encoders whose engines log what they are asked."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embcache import VllmEncoderWrapper
from embcache.cluster import connect
from tests.cluster.engines import Faults, logging_engine

Make = Callable[..., VllmEncoderWrapper]


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray, which starts in ten seconds; a replica takes as long, for what it imports."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBCACHE_HOME", str(tmp_path_factory.getbasetemp() / "embcache-home"))
        connect._quiet()
        with connect._signals_kept(), connect._silence():
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=300 * 2**20,
            )
    connect._redirect_messages()
    logging.getLogger("ray").propagate = False  # records of its errors would hold the replicas
    yield ray
    ray.shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where engines log what they embed."""
    return tmp_path / "embedded.log"


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, log: Path) -> Make:
    """Encoders of one cache; the engines of all but the first replica may be faulty."""
    gc.collect()  # what pytest logged of the last test held the replicas

    def make_(seconds_a_text: float = 0.0, kind: Any = "", **kwargs: Any) -> VllmEncoderWrapper:
        engine = logging_engine(log, seconds_a_text, Faults(kind, tmp_path / "cache"))
        own = {"cache_path": tmp_path / "cache", "dtype": "float32", "make_engine": engine}
        return VllmEncoderWrapper(str(tiny_model), **{**own, **kwargs})

    return make_
