"""A published score: STS13 with all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset, DatasetDict

from embcache import VllmEncoderWrapper
from tests.conftest import ROOT

pytestmark = pytest.mark.engine
DATA = ROOT.parent / "shared" / "data" / "sts13"
PUBLISHED = 0.8060


def local_task() -> Any:
    """mteb's STS13 over the local files."""

    class LocalSTS13(type(mteb.get_task("STS13"))):  # type: ignore[misc]
        def load_data(self, **kwargs: Any) -> None:
            rows = [
                dict(zip(("score", "sentence1", "sentence2"), line.split("\t"), strict=False))
                for path in sorted(Path(DATA).glob("*.tsv"))
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
            for row in rows:
                row["score"] = float(row["score"])
            self.dataset = DatasetDict(test=Dataset.from_list(rows))
            self.data_loaded = True

    return LocalSTS13()


@pytest.mark.skipif(not DATA.is_dir(), reason="the STS13 files are not part of the project")
def test_published_score_cold_and_warm(real_encoder: Callable[..., VllmEncoderWrapper]) -> None:
    results = []
    for kwargs in ({}, {"on_miss": "raise"}):
        encoder = real_encoder(**kwargs)
        result = mteb.evaluate(encoder, local_task(), cache=None, show_progress_bar=False)
        results.append(result.task_results[0])
        assert encoder.total.texts == 3000
        assert (encoder.total.encoded > 0) == (not kwargs)
    assert results[0].get_score() == pytest.approx(PUBLISHED, abs=0.0005)
    assert results[0].scores == results[1].scores
