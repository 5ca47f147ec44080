"""The contract between the pipeline and whatever computes vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BYTES_A_TOKEN = 4
"""UTF-8 bytes in a token, about: an estimate for when nothing is tokenized. Not characters: those
are 4 a token in English, 1 or 2 in Chinese, Japanese or Thai, each of which has 3 bytes."""


def estimated_tokens(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Guess how many tokens texts have, from their size.

    Args:
        texts: `n` texts.

    Returns:
        `(n,) int64`.
    """
    sizes = np.fromiter((len(text.encode("utf-8", "replace")) for text in texts), np.int64)
    return np.asarray(sizes // BYTES_A_TOKEN)


@dataclass(frozen=True)
class Prepared:
    """Items in the form in which the engine takes them.

    Attributes:
        prompts: `n` engine inputs, `prompts[i]` belongs to `inputs[i]`. Those of refused items are
            placeholders, which are never embedded.
        lengths: `(n,) int64`, what to sort by: token counts after truncation, or an estimate
            that grows with them.
        in_order: Whether the items are to be computed in the caller's order, not by length.
        refused: Which of the inputs the engine will not take, from 0, and why, in words that go on
            after the text: `{3: "has no tokens. Drop the row"}`. All of them at once: one bad text
            must cost neither its neighbours nor a try for each.
    """

    prompts: list[Any]
    lengths: npt.NDArray[np.int64]
    in_order: bool = False
    refused: Mapping[int, str] = field(default_factory=dict)


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

    An engine is expensive to start, so it is started at the first miss. It may have an attribute
    `memory_advice`, a sentence about what to lower where memory is short.

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

        An item that can be told here to fail by itself, whatever its company, is refused, not an
        error: `embed` would fail for a whole chunk because of it.

        Args:
            inputs: `n` items as `Request.inputs` gives them: prompt + text, or `(query,
                document)`, say.

        Returns:
            The items' prompts, their lengths in tokens, counted or estimated, and which of them
            are refused.

        Raises:
            EngineError: The engine cannot be started.
        """
        ...

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        """Compute the vectors of prepared prompts.

        Args:
            prompts: `n` of those that `prepare` returned and did not refuse, in any order.

        Returns:
            `n` vectors, in the order of the prompts.

        Raises:
            EngineError: The engine failed. It may be given the same prompts again, fewer at once;
                where it cannot go on, `started` is False then.
            WrongOutputError: It did not return one vector for each prompt; it is not asked again.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it may be started again, and closed twice."""
        ...
