"""A team's cache in an object store, behind one's own on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embcache import MissingTextsError, VllmEncoderWrapper
from tests.conftest import encode
from tests.fakes import Engines
from tests.object_store import Remote
from tests.slow_host import silent_host

Make = Callable[..., VllmEncoderWrapper]


def test_a_laptop_replays_what_a_cluster_computed(
    make_encoder: Make, fake_engines: Engines, tmp_path: Path, remote: Remote
) -> None:
    team = {"upstream": remote.url, "storage_options": remote.options}
    cluster = make_encoder(cache_path=tmp_path / "node", upstream_write=True, **team)
    vectors = encode(cluster, ["a", "b", "c"])
    laptop = make_encoder(on_miss="raise", **team)
    assert encode(laptop, ["c", "a"]).tobytes() == vectors[[2, 0]].tobytes()
    assert (laptop.stats.hits, laptop.stats.upstream) == (2, 2)
    assert 0 < laptop.stats.requests < 40 and "requests" in str(laptop.stats)
    with pytest.raises(MissingTextsError, match="nor upstream in s3://"):
        encode(laptop, ["x"])
    alone = make_encoder(on_miss="raise", upstream=[])
    assert encode(alone, ["a", "c"]).tobytes() == vectors[[0, 2]].tobytes()
    assert alone.stats.requests == 0
    assert not any(engine.starts for engine in fake_engines[1:])


def test_a_wrong_secret_costs_one_warning(
    make_encoder: Make, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**remote.options, "aws_secret_access_key": "nobody-knows"}
    encoder = make_encoder(upstream=remote.url, storage_options=options)
    with caplog.at_level(logging.WARNING):
        encode(encoder, ["a"])
        encode(encoder, ["b"])
    said = [r.getMessage() for r in caplog.records if remote.url in r.getMessage()]
    assert len(said) == 1 and "goes on without" in said[0] and "nobody-knows" not in said[0]
    assert encoder.total.encoded == 2


def test_a_store_that_never_answers_costs_seconds(
    make_encoder: Make, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with silent_host() as host, caplog.at_level(logging.WARNING):
        encoder = make_encoder(upstream="s3://bucket/team", storage_options=host.options)
        encode(encoder, ["a"])
        encode(encoder, ["b"])
    assert time.monotonic() - began < 40 and encoder.total.encoded == 2
    assert len([r for r in caplog.records if "goes on without" in r.getMessage()]) == 1
