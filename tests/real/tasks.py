"""Two mteb tasks over real text: docstrings of the Python standard library."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from demo_corpus import Docstring, choose, read_docstrings

PROMPTS = {"query": "search_query: ", "document": "search_document: ", "Classification": "topic: "}


def metadata(name: str, kind: Any, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Docstrings of the Python standard library.",
        dataset={"path": "python/stdlib-docstrings", "revision": "1"},
        type=kind,
        category="t2t" if kind == "Retrieval" else "t2c",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


@cache
def docstrings() -> list[Docstring]:
    return choose(read_docstrings(), 120)


class DocstringBodies(AbsTaskRetrieval):
    """The first paragraph asks for the rest."""

    metadata = metadata("DocstringBodies", "Retrieval", "ndcg_at_10")
    k_values: ClassVar[Any] = (1, 3, 5, 10, 20, 100)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        ids = [one.name for one in docstrings()]
        corpus = {"id": ids, "title": ids, "text": [one.body for one in docstrings()]}
        queries = {"id": ids, "text": [one.summary for one in docstrings()]}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_dict(corpus),
                    "queries": Dataset.from_dict(queries),
                    "relevant_docs": {name: {name: 1} for name in ids},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class DocstringKinds(AbsTaskClassification):
    """First paragraph, or the rest? The other task's texts, with another prompt."""

    metadata = metadata("DocstringKinds", "Classification", "accuracy")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        texts = [text for one in docstrings() for text in (one.summary, one.body)]
        rows = Dataset.from_dict({"text": texts, "label": [0, 1] * len(docstrings())})
        self.dataset = DatasetDict(rows.train_test_split(test_size=0.5, seed=1))
        self.data_loaded = True
