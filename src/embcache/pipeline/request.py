"""What one call of an encoder asks of the pipeline: which items, and under which keys."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from embcache.errors import InputError, MissingTextsError, NonFiniteError, shown
from embcache.identity.identity import DTYPES
from embcache.identity.keys import Keys, pair_keys, text_keys
from embcache.store import Column, Space
from embcache.store.index import Positions

Rows = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """The items of one call: texts, or pairs of texts.

    Attributes:
        task: Name of the task, for the record.
        show_progress: Whether to draw a progress bar.
        began: `time.perf_counter()` of the call, for the seconds in its stats.
    """

    task: str | None = None
    show_progress: bool = True
    began: float = field(default_factory=time.perf_counter)

    unit: ClassVar[str] = "text"
    verb: ClassVar[str] = "embed"

    @abstractmethod
    def __len__(self) -> int:
        """Number of items, duplicates included."""

    @abstractmethod
    def keys(self, identity: bytes) -> Keys:
        """`(n, 2) uint64`, row i is the key of item i."""

    @abstractmethod
    def inputs(self, rows: Rows) -> list[Any]:
        """What `Engine.prepare` takes for these items."""

    @abstractmethod
    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """What is recorded beside these items' vectors or scores."""

    @abstractmethod
    def show(self, row: int) -> str:
        """An item, shortened, for messages."""

    @property
    @abstractmethod
    def prompts(self) -> str:
        """What is put in front of the texts, for messages."""


@dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """Texts to be embedded.

    Attributes:
        texts: `n` texts, without the prompt.
        prompt: Put in front of each text.
        prompt_type: For the record.
    """

    texts: Sequence[str]
    prompt: str = ""
    prompt_type: str | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self, identity: bytes) -> Keys:
        """Over identity, prompt and text."""
        return text_keys(identity, self.prompt, self.texts)

    def inputs(self, rows: Rows) -> list[Any]:
        """Prompt and text, joined."""
        return [self.prompt + self.texts[row] for row in rows]

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """As in `store.schema.VECTORS`."""
        return {
            "text": [self.texts[row] for row in rows],
            "prompt": self.prompt,
            "prompt_type": self.prompt_type,
            "task": self.task,
        }

    def show(self, row: int) -> str:
        """The text without its prompt."""
        return f"{shown(self.texts[row])}"

    @property
    def prompts(self) -> str:
        """The prompt."""
        return f"prompt {self.prompt!r}"


@dataclass(frozen=True, kw_only=True)
class PairRequest(Request):
    """Pairs to be scored, queries[i] with documents[i].

    Attributes:
        queries: `n` texts, without the prefix.
        documents: `n` texts, without the prefix.
        prefixes: What is put in front of every query, and of every document.

    Raises:
        InputError: There are not as many queries as documents.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    prefixes: tuple[str, str] = ("", "")

    unit = "pair"
    verb = "score"

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.documents):
            raise InputError(
                f"inputs1 holds {len(self.queries)} texts and inputs2 {len(self.documents)}: the "
                "i-th of the one is scored with the i-th of the other, so repeat a query for each "
                "of its documents."
            )

    def __len__(self) -> int:
        return len(self.queries)

    def keys(self, identity: bytes) -> Keys:
        """Over identity, both prefixes, query and document."""
        return pair_keys(identity, self.prefixes, self.queries, self.documents)

    def inputs(self, rows: Rows) -> list[Any]:
        """`(prefix + query, prefix + document)`."""
        query, document = self.prefixes
        return [(query + self.queries[row], document + self.documents[row]) for row in rows]

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """As in `store.schema.SCORES`."""
        return {
            "query": [self.queries[row] for row in rows],
            "document": [self.documents[row] for row in rows],
            "query_prefix": self.prefixes[0],
            "document_prefix": self.prefixes[1],
            "task": self.task,
        }

    def show(self, row: int) -> str:
        """Both texts without their prefixes."""
        return f"({shown(self.queries[row])}, {shown(self.documents[row])})"

    @property
    def prompts(self) -> str:
        """The prefixes."""
        return "prefixes {!r} and {!r}".format(*self.prefixes)


def missing_error(request: Request, missing: Positions, space: Space | None) -> MissingTextsError:
    """The error for `on_miss="raise"` where rows are not cached.

    Args:
        request: Of which they are.
        missing: `(n,) int64`, their numbers, at least one.
        space: Where they are not; None for no cache at all.
    """
    where = "because there is no cache (cache_path=None)"
    if space is not None:
        where = f"in {space.location}"
    examples = ", ".join(request.show(row) for row in missing[:3].tolist())
    return MissingTextsError(
        f"{len(missing)} of {len(request)} {request.unit}s are not cached {where} "
        f'({request.prompts}), and on_miss="raise". The first: {examples}. Encode them with '
        'on_miss="encode", or check model, revision, dtype and prompts against the cache.',
        missing=len(missing),
    )


def non_finite_error(request: Request, rows: Positions, of: int, dtype: str) -> NonFiniteError:
    """The engine returned NaN or infinity for these rows of a chunk.

    Args:
        request: Of which they are.
        rows: Their numbers, at least one.
        of: Rows in the chunk.
        dtype: What the engine computes in.
    """
    row = int(rows.min())  # chunks are sorted by length, not by row
    return NonFiniteError(
        f"The engine returned NaN or infinity for {len(rows)} of {of} {request.unit}s, the first "
        f"in row {row}: {request.show(row)}. {_way_out(dtype)} Nothing of this chunk was written; "
        "chunks before it are kept."
    )


def _way_out(dtype: str) -> str:
    if dtype not in DTYPES:  # an engine that does not say what it computes in
        return "Look for what is special about this text, or whether the model overflows float16."
    others = " or ".join(f"dtype={d!r}" for d in ("bfloat16", "float32") if d != dtype)
    return f"dtype={dtype!r} cannot hold this model's activations, most likely. Use {others}."
