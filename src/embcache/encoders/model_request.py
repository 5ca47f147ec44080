"""What a call of a wrapped model asks of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embcache.encoders.inputs import Items, canary_dataset
from embcache.engine.mteb_model import Item, ModelCall
from embcache.engine.pools import without_pool
from embcache.engine.runs import runs, text_sizes
from embcache.identity.keys import Keys, text_keys
from embcache.identity.prompt_rules import AppliedPrompt
from embcache.pipeline.canary_texts import TEXTS
from embcache.pipeline.chunks import WINDOW_BYTES
from embcache.pipeline.request import Request, Rows, TextRequest
from embcache.store import Column

# Columns beside `text` that mteb's loaders make of a text and that an encoder may read.
_TEXT_PARTS = ("title", "body", "query", "instruction", "conversation")


@dataclass(frozen=True, kw_only=True)
class ModelRequest(TextRequest):
    """Texts of a call to a wrapped model.

    Attributes:
        applied: What stands for the prompt.
        parts: Other columns that the model may read, by name, row i belongs to `texts[i]`; None
            for a model that reads nothing but the texts.
        call: The call of mteb, with all rows and arguments for the model.
        pads: Whether the model pads a batch to its longest text. Canaries are then encoded one by
            one: beside the long one, padding the others would cost three times the time.
    """

    applied: AppliedPrompt
    parts: Mapping[str, Sequence[Any]] | None
    call: ModelCall
    pads: bool = False

    def keys(self, identity: bytes) -> Keys:
        """Hash identity, prompt, text, and the other columns that the model may read."""
        if not self.parts:
            return text_keys(identity, self.applied.key, self.texts)
        prompt = json.dumps({"prompt": self.applied.key, "columns": sorted(self.parts)})
        keys = [np.empty((0, 2), np.uint64)]
        for run in runs(text_sizes(self.texts), WINDOW_BYTES):  # of each text there is a copy
            rows = zip(self.texts[run], *(part[run] for part in self.parts.values()), strict=True)
            keys.append(text_keys(identity, prompt, [json.dumps(row, default=str) for row in rows]))
        return np.concatenate(keys)

    def inputs(self, rows: Rows) -> list[Any]:
        """The rows of the call as `Item`s, without prompt: the model adds that itself."""
        return [Item(self.call, row, self.texts[row]) for row in rows]

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """Columns of `store.schema.VECTORS`; the prompt is null where it is not known."""
        return {**super().columns(rows), "prompt": self.applied.text}

    @property
    def context(self) -> Hashable:
        """The prompt, or the circumstances that stand for it, and the columns that there are."""
        return self.applied.key, *sorted(self.call.dataset.column_names)

    def canaries(self, *, with_prompt: bool) -> ModelRequest:
        """The canary texts in this call's circumstances, with all columns that it has."""
        dataset = canary_dataset(self.call.dataset, TEXTS)
        arguments = without_pool(self.call.arguments) | ({"batch_size": 1} if self.pads else {})
        return replace(
            self,
            texts=TEXTS,
            task=None,
            show_progress=False,
            parts=None if self.parts is None else {n: dataset[n][:] for n in self.parts},
            call=replace(self.call, dataset=dataset, pool=None, arguments=arguments),
        )

    def canaries_again(self, columns: Sequence[Mapping[str, Any]]) -> Sequence[Request]:
        """This one alone: only the model puts prompts in front of texts."""
        return [self]

    @property
    def prompts(self) -> str:
        """The prompt, or the circumstances that stand for it, for messages."""
        text = self.applied.text
        return f"prompt {text!r}" if text is not None else f"circumstances {self.applied.key}"


def text_parts(items: Items) -> dict[str, Sequence[Any]]:
    """Columns beside `text` that an encoder may read, by name.

    Args:
        items: All of a call.

    Returns:
        Row i of each column belongs to `items.texts[i]`.
    """
    return {
        name: items.dataset[name][:] for name in _TEXT_PARTS if name in items.dataset.column_names
    }
