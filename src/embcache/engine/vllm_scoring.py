"""vLLM as a cross-encoder: pairs of texts in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embcache.engine.base import CHARACTERS_A_TOKEN, Prepared
from embcache.engine.vllm import VllmEngine


class VllmScoringEngine(VllmEngine):
    """A `vllm.LLM` of a sequence classification model with one label.

    Prompts are `(query, document)` pairs. vLLM joins and tokenizes them itself: how that is done
    is the model's (special tokens between the two, token types, a template), and its cost is small
    beside that of a cross-encoder.
    """

    convert = "classify"

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Leave the pairs as they are; lengths are estimated from characters.

        In the caller's order: vLLM pads nothing, so sorting gains nothing, and the last bit of a
        score depends on which pairs share a step. A cold run makes the calls of `LLM.score`.

        Args:
            inputs: `n` pairs of strings, `(query, document)`.
        """
        self.start()
        lengths = np.fromiter((len(q) + len(d) for q, d in inputs), np.int64, len(inputs))
        return Prepared(list(inputs), lengths // CHARACTERS_A_TOKEN, in_order=True)

    def _run(self, prompts: list[Any], **options: Any) -> list[Any]:
        queries, documents = zip(*prompts, strict=True)
        outputs: list[Any] = self._llm.score(list(queries), list(documents), **options)
        return outputs

    def _values(self, outputs: list[Any]) -> npt.NDArray[np.float32]:
        scores = np.array([output.outputs.score for output in outputs], np.float32)
        return scores.reshape(-1, 1)
