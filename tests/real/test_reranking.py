"""Reranking, run by mteb over real sentences, with a real cross-encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mteb
import pytest
from datasets import Dataset
from mteb.mocks.mock_tasks import MockRerankingTask
from mteb.results import TaskResult

from embcache import VllmCrossEncoderWrapper

pytestmark = pytest.mark.engine

Make = Callable[..., VllmCrossEncoderWrapper]

QUESTIONS = {
    "boiling": "At what temperature does water boil?",
    "capital": "What is the capital of Australia?",
    "moon": "How far away is the moon?",
    "bread": "Why does bread rise?",
    "rust": "What makes iron rust?",
    "tides": "What causes the tides?",
    "heart": "How often does a heart beat?",
    "paper": "Who invented paper?",
}
ANSWERS = {
    "boiling": "Water boils at 100 degrees Celsius at sea level.",
    "capital": "Canberra has been the capital of Australia since 1913.",
    "moon": "On average the moon is 384,400 kilometres from the earth.",
    "bread": "Yeast turns sugar into carbon dioxide, whose bubbles lift the dough.",
    "rust": "Iron rusts where it meets oxygen and water.",
    "tides": "The pull of the moon and the sun moves the water of the oceans.",
    "heart": "An adult's heart beats 60 to 100 times a minute at rest.",
    "paper": "Paper is said to be an invention of Cai Lun, in China, around 105 AD.",
}


class RealReranking(MockRerankingTask):
    """Every question with all answers as its candidates."""

    def load_data(self, **kwargs: Any) -> None:
        ids = list(QUESTIONS)
        self.dataset = {
            "default": {
                "test": {
                    "queries": Dataset.from_dict({"id": ids, "text": list(QUESTIONS.values())}),
                    "corpus": Dataset.from_dict({"id": ids, "text": list(ANSWERS.values())}),
                    "relevant_docs": {name: {name: 1} for name in ids},
                    "top_ranked": dict.fromkeys(ids, ids),
                }
            }
        }
        self.data_loaded = True


def test_reranking_cold_and_warm(real_cross_encoder: Make) -> None:
    results = []
    for kwargs in ({}, {"on_miss": "raise"}):
        encoder = real_cross_encoder(**kwargs)
        result = mteb.evaluate(encoder, RealReranking(), cache=None, show_progress_bar=False)
        results.append(result.task_results[0].scores)
        assert encoder.total.texts == 64
        assert encoder.total.encoded == (0 if kwargs else 64)
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore")
def test_mock_run(real_cross_encoder: Make) -> None:
    """What fails, fails with mteb's own cross-encoders too: retrieval without candidates."""
    baseline = mteb.get_model("mteb/baseline-random-cross-encoder")
    text_only = {"modalities": ["text"]}
    baseline.mteb_model_meta = baseline.mteb_model_meta.model_copy(update=text_only)
    theirs, cold = mteb.mock_run(baseline), dict(mteb.mock_run(real_cross_encoder()).items())
    ran = {name: result for name, result in cold.items() if isinstance(result, TaskResult)}
    assert len(ran) >= 4
    assert ran.keys() == {n for n, result in theirs.items() if isinstance(result, TaskResult)}
    warm = dict(mteb.mock_run(real_cross_encoder(on_miss="raise")).items())
    assert {name: warm[name].get_score() for name in ran} == {
        name: result.get_score() for name, result in ran.items()
    }
