"""Corpus and cache in an object store: nothing but Ray is on this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_python
from tests.object_store import BUCKET, ObjectStore, Remote

pytestmark = pytest.mark.slow

SCRIPT = """
import json, logging
from dataclasses import asdict
from pathlib import Path
from embcache import Cache, VllmEncoderWrapper
from embcache.cluster import ClusterWarmer
from embcache.tools.check import check_space
from embcache.warm import Columns
from embcache.warm.parts import parts
from tests.cluster.engines import logging_engine

url, log, model = {url!r}, Path({log!r}), {model!r}
encoder = VllmEncoderWrapper(
    model, dtype="float32", cache_path=url + "/cache", make_engine=logging_engine(log)
)
bad = []
corpus = parts("parquet", [url + "/corpus/"], Columns("text", "title"), split=True)
warmer = ClusterWarmer(encoder, 2, report=lambda row: bad.append(str(row)))
stats = warmer.run(corpus, total=3000)
[space] = Cache(url + "/cache").spaces()
report = check_space(space._space)
answer = dict(
    stats=asdict(stats), bad=bad, parts=len(corpus), ok=report.ok, rows=report.rows,
    requests=space._space.location.traffic.requests,
)
print(json.dumps(answer))
"""


def test_from_one_url_into_another(
    remote: Remote, object_store: ObjectStore, tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    above = remote.url.removeprefix(f"s3://{BUCKET}/")
    for number in range(3):
        ids = range(number * 1000, (number + 1) * 1000)
        table = pa.table(
            {
                "text": [None if i % 500 == 7 else f"text {i}" for i in ids],
                "title": [f"title {i}" for i in ids],
            }
        )
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=300)
        obstore.put(object_store.client(), f"{above}/corpus/{number}.parquet", file.getvalue())
    log = tmp_path / "log"
    code = SCRIPT.format(url=remote.url, log=str(log), model=str(tiny_model))
    answer = json.loads(run_python(code, **object_store.environment).splitlines()[-1])
    assert answer["ok"] and answer["rows"] == 3000 - 6
    assert sorted(answer["bad"]) == sorted(
        f"{remote.url}/corpus/{i // 1000}.parquet, row {i % 1000}: column 'text' is null, not a "
        "string"
        for i in range(7, 3000, 500)
    )
    texts = [line.split("\t")[1] for line in log.read_text().splitlines()]
    assert sorted(texts) == sorted(f"title {i} text {i}" for i in range(3000) if i % 500 != 7)
    assert answer["stats"]["committed"] == answer["stats"]["encoded"] == 3000 - 6
    assert sum(one["encoded"] for one in answer["stats"]["replicas"]) == 3000 - 6
