"""A real Ray on this machine, and encoders whose engines log what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embcache import VllmEncoderWrapper
from tests.cluster.engines import Faults, logging_engine

Make = Callable[..., VllmEncoderWrapper]


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job has a Ray of its own, which costs three seconds: no job meets what another left."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where engines log what they embed."""
    return tmp_path / "embedded.log"


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path, log: Path) -> Make:
    """Encoders of one cache; the engines of all but the first replica may be faulty."""

    def make_(seconds_a_text: float = 0.0, kind: Any = "", **kwargs: Any) -> VllmEncoderWrapper:
        engine = logging_engine(log, seconds_a_text, Faults(kind, tmp_path / "cache"))
        own = {"cache_path": tmp_path / "cache", "dtype": "float32", "make_engine": engine}
        return VllmEncoderWrapper(str(tiny_model), **{**own, **kwargs})

    return make_
