"""The contract between the pipeline and whatever computes vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embcache.errors import EmbcacheError

CHARACTERS_A_TOKEN = 4
"""Of English text, about: for what is planned before, or without, tokenizing."""


class RefusedTextError(EmbcacheError):
    """The tokenizer refuses a text; the pipeline says which of the caller's rows that is.

    Attributes:
        index: Which of the inputs handed to `prepare`.
        reason: Why, to be put behind "row n ".
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index} {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class Prepared:
    """Items in the form in which the engine takes them.

    Attributes:
        prompts: `n` engine inputs, prompts[i] belongs to inputs[i].
        lengths: `(n,) int64`, what to sort by: token counts after truncation, or an estimate
            that grows with them.
        in_order: Whether they are better computed in the caller's order than by length.
    """

    prompts: list[Any]
    lengths: npt.NDArray[np.int64]
    in_order: bool = False


@dataclass(frozen=True)
class Embedded:
    """Vectors, or scores, of one chunk.

    Attributes:
        vectors: `(n, dim) float32`, row i = prompts[i]; `dim` is 1 for scores.
        n_tokens: `(n,) int32`, tokens that the model saw, special tokens included; None where
            the engine does not say.
    """

    vectors: npt.NDArray[np.float32]
    n_tokens: npt.NDArray[np.int32] | None = None


class Engine(Protocol):
    """Turns texts into vectors, or pairs of texts into scores.

    Expensive to start, so started at the first miss.

    Attributes:
        batch_size: Sequences it works on at once: the unit of a good chunk.
    """

    batch_size: int

    @property
    def version(self) -> str:
        """Engine package and version, for the record in a space's metadata."""
        ...

    def start(self) -> None:
        """Load the model; a second call does nothing.

        Raises:
            EngineNotInstalledError: The package is not there.
            EngineError: The engine refused to start.
        """
        ...

    @property
    def started(self) -> bool:
        """Whether the model is loaded."""
        ...

    @property
    def dtype(self) -> str:
        """What it really computes in, known once started: float32, float16, bfloat16, unknown."""
        ...

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        """Tokenize, or estimate lengths; starts the engine.

        Args:
            inputs: As `Request.inputs` gives them: prompt + text, `(query, document)`, ...


        Raises:
            RefusedTextError: The tokenizer refuses a text.
        """
        ...

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Compute the vectors of prepared prompts, in their order."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it may be started again."""
        ...
