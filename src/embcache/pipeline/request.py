"""What one call of an encoder asks of the pipeline: which items, and under which keys."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from embcache.engine.runs import Sizes, text_sizes
from embcache.errors import InputError, shown
from embcache.identity.keys import Keys, pair_keys, text_keys
from embcache.pipeline.canary_texts import PAIRS, TEXTS
from embcache.store import Column

Rows = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """The items of one call: texts, or pairs of texts.

    Items are numbered from 0 in the caller's order; `rows` of the methods are such numbers.

    Attributes:
        task: Name of the task, which is recorded beside new values; None for none.
        show_progress: Whether to draw a progress bar.
        began: `time.perf_counter()` when the call began, for the seconds in its stats.
        unit: What an item is called in messages.
        verb: What is done with an item, for the progress bar.
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
        """Hash all items to keys.

        Args:
            identity: Canonical bytes of the identity, see `Identity.to_bytes`.

        Returns:
            `(n, 2) uint64`, row i is the key of item i.

        Raises:
            InputError: A text or prompt is no `str`, or has no UTF-8 form; the message names the
                row.
        """

    @abstractmethod
    def inputs(self, rows: Rows) -> list[Any]:
        """What `Engine.prepare` takes for some items.

        Args:
            rows: `m` numbers of items.

        Returns:
            `m` inputs, in the order of `rows`.
        """

    @abstractmethod
    def sizes(self, rows: Rows) -> Sizes:
        """Bytes of memory that what `inputs` returns takes.

        Args:
            rows: `m` numbers of items.

        Returns:
            `(m,) int64`, in the order of `rows`.
        """

    @abstractmethod
    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """What is recorded beside the vectors or scores of some items.

        Args:
            rows: `m` numbers of items.

        Returns:
            Columns by name: `m` values each in the order of `rows`, or one value for all.
        """

    @abstractmethod
    def show(self, row: int) -> str:
        """An item, quoted and shortened, for messages.

        Args:
            row: Number of the item.
        """

    @property
    @abstractmethod
    def prompts(self) -> str:
        """What is put in front of the texts, for messages."""

    @property
    @abstractmethod
    def context(self) -> Hashable:
        """What decides how a text comes to the engine, beside the text: equal for equal ways."""

    @abstractmethod
    def canaries(self, *, with_prompt: bool) -> Request:
        """The same request over the canary texts.

        Args:
            with_prompt: Whether with this request's prompt; otherwise, where the engine can be
                asked without, with none.
        """

    def canaries_again(self, columns: Sequence[Mapping[str, Any]]) -> Sequence[Request]:
        """The requests by which canaries of earlier calls can be encoded once more.

        Args:
            columns: Of each canary that a space keeps its texts and prompts, where it has them.

        Returns:
            This one alone, which is a request of `canaries`, where the engine cannot be asked
            for other prompts than the call's; otherwise one for each prompt that is kept.
        """
        return [self]


@dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """Texts to be embedded; for the methods see `Request`.

    Attributes:
        texts: `n` texts, without the prompt.
        prompt: Put in front of each text.
        prompt_type: "query" or "document", which is recorded beside new vectors; None for none.
    """

    texts: Sequence[str]
    prompt: str = ""
    prompt_type: str | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def keys(self, identity: bytes) -> Keys:
        """Hash identity, prompt and text, see `text_keys`."""
        return text_keys(identity, self.prompt, self.texts)

    def inputs(self, rows: Rows) -> list[Any]:
        """Prompt + text, a string for each of the rows."""
        return [self.prompt + self.texts[row] for row in rows]

    def sizes(self, rows: Rows) -> Sizes:
        """Of each text, with the prompt."""
        return text_sizes(self.texts[row] for row in rows) + sys.getsizeof(self.prompt)

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """Text, prompt, prompt type and task, as columns of `store.schema.VECTORS`."""
        return {
            "text": [self.texts[row] for row in rows],
            "prompt": self.prompt,
            "prompt_type": self.prompt_type,
            "task": self.task,
        }

    def show(self, row: int) -> str:
        """The text without its prompt, quoted and shortened."""
        return f"{shown(self.texts[row])}"

    @property
    def prompts(self) -> str:
        """The prompt, for messages."""
        return f"prompt {self.prompt!r}"

    @property
    def context(self) -> Hashable:
        """The prompt."""
        return self.prompt

    def canaries(self, *, with_prompt: bool) -> TextRequest:
        """`canary_texts.TEXTS`, see `Request.canaries`."""
        prompt = self.prompt if with_prompt else ""
        return replace(self, texts=TEXTS, prompt=prompt, task=None, show_progress=False)

    def canaries_again(self, columns: Sequence[Mapping[str, Any]]) -> Sequence[Request]:
        """One request for each prompt, see `Request.canaries_again`."""
        if columns and "prompt" not in columns[0]:
            return [self]
        prompts = dict.fromkeys(row["prompt"] or "" for row in columns)
        return [replace(self, prompt=prompt) for prompt in prompts]


@dataclass(frozen=True, kw_only=True)
class PairRequest(Request):
    """Pairs to be scored, `queries[i]` with `documents[i]`; for the methods see `Request`.

    Attributes:
        queries: `n` texts, without the prefix.
        documents: `n` texts, without the prefix.
        prefixes: What is put in front of every query, and what in front of every document.
        suffixes: What is put behind every query, and what behind every document. The identity
            holds them, not the pairs' keys: no column could record them in a space of format 1.

    Raises:
        InputError: There are not as many queries as documents.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    prefixes: tuple[str, str] = ("", "")
    suffixes: tuple[str, str] = ("", "")

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
        """Hash identity, both prefixes, query and document, see `pair_keys`."""
        return pair_keys(identity, self.prefixes, self.queries, self.documents)

    def inputs(self, rows: Rows) -> list[Any]:
        """`(prefix + query + suffix, prefix + document + suffix)` for each of the rows."""
        (query, document), (query_end, document_end) = self.prefixes, self.suffixes
        return [
            (query + self.queries[row] + query_end, document + self.documents[row] + document_end)
            for row in rows
        ]

    def sizes(self, rows: Rows) -> Sizes:
        """Of both texts, with what is put around them."""
        around = sum(map(sys.getsizeof, (*self.prefixes, *self.suffixes)))
        queries = text_sizes(self.queries[row] for row in rows)
        return queries + text_sizes(self.documents[row] for row in rows) + around

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """Both texts, both prefixes and the task, as columns of `store.schema.SCORES`."""
        return {
            "query": [self.queries[row] for row in rows],
            "document": [self.documents[row] for row in rows],
            "query_prefix": self.prefixes[0],
            "document_prefix": self.prefixes[1],
            "task": self.task,
        }

    def show(self, row: int) -> str:
        """Both texts without their prefixes, quoted and shortened."""
        return f"({shown(self.queries[row])}, {shown(self.documents[row])})"

    @property
    def prompts(self) -> str:
        """Both prefixes, and both suffixes if there are any, for messages."""
        prefixes = "prefixes {!r} and {!r}".format(*self.prefixes)
        if not any(self.suffixes):
            return prefixes
        return "{}, suffixes {!r} and {!r}".format(prefixes, *self.suffixes)

    @property
    def context(self) -> Hashable:
        """Both prefixes."""
        return self.prefixes

    def canaries(self, *, with_prompt: bool) -> PairRequest:
        """`canary_texts.PAIRS`, see `Request.canaries`."""
        queries, documents = zip(*PAIRS, strict=True)
        return replace(
            self,
            queries=queries,
            documents=documents,
            prefixes=self.prefixes if with_prompt else ("", ""),
            task=None,
            show_progress=False,
        )

    def canaries_again(self, columns: Sequence[Mapping[str, Any]]) -> Sequence[Request]:
        """One request for each pair of prefixes, see `Request.canaries_again`."""
        if columns and "query_prefix" not in columns[0]:
            return [self]
        prefixes = dict.fromkeys(
            (row["query_prefix"] or "", row["document_prefix"] or "") for row in columns
        )
        return [replace(self, prefixes=both) for both in prefixes]
