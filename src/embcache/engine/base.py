"""The contract between the pipeline and whatever computes vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embcache.errors import EmbcacheError

CHARACTERS_A_TOKEN = 4
"""Characters in a token of English text, about: an estimate for when nothing is tokenized."""


class RefusedTextError(EmbcacheError):
    """The tokenizer refuses a text; the pipeline says which of the caller's rows that is.

    Args:
        index: Which of the inputs handed to `prepare` it is, from 0.
        reason: Why it is refused, so that "row n " and the reason make a sentence.

    Attributes:
        index: As given.
        reason: As given.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index} {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class Prepared:
    """Items in the form in which the engine takes them.

    Attributes:
        prompts: `n` engine inputs, `prompts[i]` belongs to `inputs[i]`.
        lengths: `(n,) int64`, what to sort by: token counts after truncation, or an estimate
            that grows with them.
        in_order: Whether the items are to be computed in the caller's order, not by length.
    """

    prompts: list[Any]
    lengths: npt.NDArray[np.int64]
    in_order: bool = False


@dataclass(frozen=True)
class Embedded:
    """Vectors, or scores, of one chunk.

    Attributes:
        vectors: `(n, dim) float32`, row i = `prompts[i]`; `dim` is 1 for scores.
        n_tokens: `(n,) int32`, tokens that the model saw, special tokens included; None where
            the engine does not say.
    """

    vectors: npt.NDArray[np.float32]
    n_tokens: npt.NDArray[np.int32] | None = None


class Engine(Protocol):
    """Turns texts into vectors, or pairs of texts into scores.

    An engine is expensive to start, so it is started at the first miss.

    Attributes:
        batch_size: How many sequences it works on at once; chunks are made in proportion.
    """

    batch_size: int

    @property
    def version(self) -> str:
        """Package and version (`vllm 0.32.0`, say), which a space's metadata records."""
        ...

    def start(self) -> None:
        """Load the model; a second call does nothing.

        Raises:
            EngineNotInstalledError: The engine's package is not installed.
            EngineError: The engine refused to start.
        """
        ...

    @property
    def started(self) -> bool:
        """Whether the model is loaded."""
        ...

    @property
    def dtype(self) -> str:
        """What it really computes in, once started: float32, float16, bfloat16 or unknown."""
        ...

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Bring items into the form that `embed` takes; starts the engine.

        Args:
            inputs: `n` items as `Request.inputs` gives them: prompt + text, or `(query,
                document)`, say.

        Returns:
            The items' prompts, and their lengths in tokens, counted or estimated.

        Raises:
            RefusedTextError: The tokenizer refuses a text.
            EngineError: The engine cannot be started.
        """
        ...

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Compute the vectors of prepared prompts.

        Args:
            prompts: `n` of those that `prepare` returned, in any order.

        Returns:
            `n` vectors, in the order of the prompts.

        Raises:
            EngineError: The engine failed.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it may be started again, and closed twice."""
        ...
