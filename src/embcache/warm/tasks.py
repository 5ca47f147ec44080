"""The texts that `mteb.evaluate` will have encoded for a task, found out by evaluating it.

The task is evaluated with a model that passes every text on and answers with random vectors, which
cost nothing. So whatever a task does to its data before it encodes it is done here too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embcache.encoders.inputs import read_texts
from embcache.errors import ConfigError, EmbcacheError, InputError
from embcache.warm.batches import BATCH_BYTES, BATCH_ROWS, TextBatch
from embcache.warm.streams import Abandoned, pulled

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata

    from embcache.encoders.vllm_encoder import VllmEncoderWrapper

logger = logging.getLogger(__name__)

PARTS = ("corpus", "queries")
_DIM = 8


def read_task(
    task: AbsTask, encoder: VllmEncoderWrapper, parts: tuple[str, ...], stop: threading.Event
) -> Iterator[TextBatch]:
    """All texts of a task, with the prompts that the encoder will put in front of them.

    Args:
        task: The task; its splits and subsets are those that it was made with.
        encoder: The encoder that will evaluate the task; it decides the prompts.
        parts: Of retrieval tasks, "corpus", "queries" or both; of other tasks, all texts are read.
        stop: Once it is set, the stream ends, also while it waits.

    Yields:
        Batches of texts with their prompt, in the order in which mteb asks for them.

    Raises:
        ConfigError: `parts` is empty or names an unknown part; or the task has inputs that are not
            text.
        InputError: mteb cannot load or prepare the task's data.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"part {unknown[0] if unknown else ''!r} is none of {', '.join(PARTS)}.")
    if task.metadata.modalities != ["text"]:
        raise ConfigError(
            f"task {task.metadata.name} has inputs that are not text "
            f"({', '.join(task.metadata.modalities)}): a text encoder cannot be warmed for it."
        )

    def push(give: Callable[[TextBatch], None]) -> None:
        import mteb

        asking = _AskingModel(encoder, parts, give)
        try:
            # cache=None: mteb's own results would answer without asking for a text.
            mteb.evaluate(asking, task, cache=None, show_progress_bar=False)
        except (Abandoned, EmbcacheError):
            raise
        except Exception as error:  # of mteb, datasets or the hub: whatever loading data raises
            raise InputError(
                f"mteb cannot read task {task.metadata.name} (splits "
                f"{', '.join(task.eval_splits)}): {type(error).__name__}: {error}. Are there such "
                "splits, and can its data set be loaded here?"
            ) from error

    yield from pulled(push, 4, stop)


def estimate_texts(task: AbsTask, parts: tuple[str, ...]) -> int | None:
    """Estimate how many texts a task has, from the descriptive statistics that mteb ships.

    Args:
        task: The task; its splits and subsets are those that it was made with.
        parts: Of retrieval tasks, "corpus", "queries" or both.

    Returns:
        The number; None where mteb ships no statistics of one of the splits.
    """
    described = task.metadata.descriptive_stats or {}
    counts: list[int] = []
    for split in task.eval_splits:
        if split not in described:
            return None
        of_subsets = described[split].get("hf_subset_descriptive_stats") or {}
        chosen = [of_subsets[name] for name in task.hf_subsets if name in of_subsets]
        counts += [_described_texts(one, parts) for one in chosen or [described[split]]]
    return sum(counts)


def _described_texts(described: Mapping[str, Any], parts: tuple[str, ...]) -> int:
    if "num_documents" in described:
        corpus = described["num_documents"] if "corpus" in parts else 0
        return int(corpus + (described["num_queries"] if "queries" in parts else 0))
    # text_statistics of one text a sample; text1_statistics and text2_statistics of pairs
    columns = [value for value in described.values() if isinstance(value, dict)]
    texts = sum("total_text_length" in column for column in columns)
    return int(described["num_samples"]) * max(texts, 1)


class _AskingModel:
    """An mteb model that passes texts on; for retrieval a search model, which need not score.

    Args:
        encoder: Decides the prompts.
        parts: Which parts of retrieval tasks are passed on.
        give: Is called with each batch of texts.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        parts: tuple[str, ...],
        give: Callable[[TextBatch], None],
    ) -> None:
        self.mteb_model_meta = encoder.mteb_model_meta
        self._encoder = encoder
        self._parts = parts
        self._give = give
        self._first = ""
        # A generator of its own, so that a task which draws from NumPy's draws what it always does.
        self._random = np.random.default_rng(0)

    def encode(
        self, inputs: Any, *, task_metadata: TaskMetadata, prompt_type: Any = None, **_: Any
    ) -> npt.NDArray[np.float32]:
        """Pass the texts on, and return random vectors."""
        texts = read_texts(inputs)
        self._pass_on(texts, task_metadata, prompt_type)
        return self._random.standard_normal((len(texts), _DIM)).astype(np.float32)

    def index(
        self, corpus: Any, *, task_metadata: TaskMetadata, encode_kwargs: Any, **_: Any
    ) -> None:
        """Pass the corpus on, piece by piece: it may be larger than memory."""
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        self._first = str(corpus["id"][0]) if len(corpus) else ""
        if "corpus" not in self._parts:
            return
        at_once = _rows_at_once(corpus)
        for start in range(0, len(corpus), at_once):
            piece = corpus.select(range(start, min(start + at_once, len(corpus))))
            loader = create_dataloader(
                piece, task_metadata=task_metadata, prompt_type=PromptType.document, **encode_kwargs
            )
            texts = read_texts(loader)
            numbers = range(start, start + len(texts))
            self._pass_on(texts, task_metadata, PromptType.document, numbers, "document")

    def search(
        self, queries: Any, *, task_metadata: TaskMetadata, encode_kwargs: Any, **_: Any
    ) -> Mapping[str, Mapping[str, float]]:
        """Pass the queries on, and return the first document for each."""
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        if "queries" in self._parts:
            loader = create_dataloader(
                queries, task_metadata=task_metadata, prompt_type=PromptType.query, **encode_kwargs
            )
            texts = read_texts(loader)
            self._pass_on(texts, task_metadata, PromptType.query, range(len(texts)), "query")
        return {name: {self._first: 0.0} for name in queries["id"]}

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines, of random vectors."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines, of random vectors."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _pass_on(
        self,
        texts: Sequence[str],
        task_metadata: TaskMetadata,
        prompt_type: Any,
        numbers: Sequence[int] = (),
        unit: str = "row",
    ) -> None:
        kind = None if prompt_type is None else str(prompt_type.value)
        batch = TextBatch(
            list(texts),
            task_metadata.name,
            prompt=self._encoder.prompt_for(kind, task_metadata),
            prompt_type=kind,
            numbers=numbers,
            unit=unit,
        )
        for piece in batch.pieces(BATCH_ROWS, BATCH_BYTES):
            self._give(piece)


def _rows_at_once(corpus: Any) -> int:
    """So many documents as take `BATCH_BYTES` on the average."""
    stored = getattr(corpus, "data", None)
    size = 0 if stored is None else stored.nbytes // max(stored.num_rows, 1)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(size, 1)))
