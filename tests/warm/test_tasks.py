"""What is warmed is what mteb asks for afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.mocks.mock_run import ALL_MOCK_TASK_TEST_GRID
from mteb.mocks.mock_tasks import MockRetrievalTask
from mteb.results import TaskResult

from embcache import (
    ConfigError,
    InputError,
    MissingTextsError,
    RefusedTextsError,
    VllmEncoderWrapper,
)
from embcache.warm import BadRow, Warmer
from embcache.warm.tasks import estimate_texts, read_task
from tests.fakes import FakeEngine, Shared

Make = Callable[..., VllmEncoderWrapper]
TEXT_TASKS = [task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.modalities == ["text"]]
PROMPTS = {"query": "query: ", "document": "passage: ", "STS": "sts: "}
BOTH = ("corpus", "queries")


def warm(encoder: VllmEncoderWrapper, task: Any, parts: tuple[str, ...] = BOTH) -> None:
    warmer = Warmer(encoder)
    warmer.run(read_task(task, encoder, parts, warmer.stop))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.metadata.name)
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompts", "prompts"])
def test_evaluation_finds_everything(task: Any, prompts: Any, make_encoder: Make) -> None:
    warm(make_encoder(prompt_dict=prompts), task)
    encoder = make_encoder(prompt_dict=prompts, on_miss="raise")
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    assert isinstance(result.task_results[0], TaskResult)
    assert encoder.total.texts > 0 and encoder.total.encoded == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("part", "missing"), [("corpus", "query"), ("queries", "passage")])
def test_only_a_part(part: str, missing: str, make_encoder: Make) -> None:
    warm(make_encoder(prompt_dict=PROMPTS), MockRetrievalTask(), (part,))
    encoder = make_encoder(prompt_dict=PROMPTS, on_miss="raise")
    with pytest.raises(MissingTextsError, match=f"prompt '{missing}: '"):
        mteb.evaluate(encoder, MockRetrievalTask(), cache=None, show_progress_bar=False)


class WithAnEmptyDocument(MockRetrievalTask):
    """mteb joins no title and a blank text to "", which vLLM refuses without special tokens."""

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        super().load_data(*args, **kwargs)
        split = self.dataset["default"]["test"]
        corpus = split["corpus"].to_list()
        split["corpus"] = Dataset.from_list(
            [*corpus, {**corpus[0], "id": "e", "title": "", "text": " "}]
        )


@pytest.mark.filterwarnings("ignore")
def test_a_task_with_an_empty_document(
    make_encoder: Make, fake_engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating names its row, with all others cached; warming leaves it out and reads on."""
    refusing = FakeEngine()
    refusing.refuse = {""}
    # Shared: an encoder that is collected closes its engine, in the middle of another's work.
    monkeypatch.setattr(fake_engines, "_make", lambda *_: Shared(refusing))
    task = WithAnEmptyDocument()
    task.load_data()
    documents = len(task.dataset["default"]["test"]["corpus"])
    with pytest.raises(RefusedTextsError, match=rf"1 of {documents} texts .* row \d+, '': is"):
        mteb.evaluate(make_encoder(), task, cache=None, show_progress_bar=False)
    reported: list[BadRow] = []
    warmer = Warmer(make_encoder(), report=reported.append)
    stats = warmer.run(read_task(WithAnEmptyDocument(), make_encoder(), BOTH, warmer.stop))
    assert stats.refused == len(reported) > 0 and "MockRetrieval" in reported[0].place
    assert len(refusing.encoded) == len(set(refusing.encoded)) and "" not in refusing.encoded
    assert stats.hits >= documents - 1


@pytest.mark.filterwarnings("ignore")
def test_places_in_a_retrieval_task(make_encoder: Make) -> None:
    batches = list(read_task(MockRetrievalTask(), make_encoder(), BOTH, threading.Event()))
    places = [batch.place(i) for batch in batches for i in range(len(batch.texts))]
    assert {"MockRetrievalTask, document 0", "MockRetrievalTask, query 1"} <= set(places)


def test_an_unknown_part(make_encoder: Make) -> None:
    with pytest.raises(ConfigError, match="part 'titles' is none of corpus, queries"):
        list(read_task(MockRetrievalTask(), make_encoder(), ("titles",), threading.Event()))


@pytest.mark.filterwarnings("ignore")
def test_a_split_that_is_not_there(make_encoder: Make) -> None:
    task = MockRetrievalTask().filter_eval_splits(["nothing"])
    with pytest.raises(InputError, match=r"cannot read task MockRetrieval.* \(splits nothing\): "):
        list(read_task(task, make_encoder(), BOTH, threading.Event()))


def test_a_task_with_images(make_encoder: Make) -> None:
    [task] = [t for t in ALL_MOCK_TASK_TEST_GRID if t.metadata.name == "MockAny2AnyRetrievalI2T"]
    with pytest.raises(ConfigError, match="MockAny2AnyRetrievalI2T has inputs that are not text"):
        list(read_task(task, make_encoder(), BOTH, threading.Event()))


@pytest.mark.parametrize(
    ("name", "subsets", "parts", "texts"),
    [
        ("NFCorpus", None, BOTH, 3633 + 323),
        ("NFCorpus", None, ("queries",), 323),
        ("STS13", None, BOTH, 2 * 1500),
        ("MIRACLRetrieval", ["ar"], BOTH, 2_064_310),
        ("ArxivClusteringP2P", None, BOTH, 732_723),
    ],
)
def test_estimate(name: str, subsets: Any, parts: tuple[str, ...], texts: int) -> None:
    assert estimate_texts(mteb.get_task(name, hf_subsets=subsets), parts) == texts


@pytest.mark.filterwarnings("ignore")
def test_estimate_of_a_task_that_mteb_does_not_describe() -> None:
    assert estimate_texts(mteb.get_task("NFCorpus", eval_splits=["nothing"]), BOTH) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.metadata.name)
def test_estimate_is_about_right(
    task: Any, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of two: what a task trains on is left out, parallel texts count twice."""
    assert estimate_texts(task, BOTH) is None  # mteb ships no file of a mock task's statistics
    described = property(lambda _: task.expected_stats)  # but the same, computed
    monkeypatch.setattr(TaskMetadata, "descriptive_stats", described)
    found = estimate_texts(task, BOTH)
    texts = sum(len(b.texts) for b in read_task(task, make_encoder(), BOTH, threading.Event()))
    assert found is not None and texts / 2 <= found <= 2 * texts
