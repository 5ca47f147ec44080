"""What a contender is told, and what it is: shared by the process that measures and its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ANSWER = "embcache-bench:"
"""What a contender's line begins with that says how many seconds a call took."""

WARM_UP = -1
"""The number of the first call that is not timed; the next ones are one less each."""


@dataclass(frozen=True)
class Batch:
    """Texts that nobody has seen before, made by `_inputs.fresh_texts`.

    Attributes:
        texts: How many.
        least: The least number of words, each of which is one token of the model.
        most: The greatest number of words; lengths are uniform between them.
        cached: How many texts beside them are cached, of part `partly`.
    """

    texts: int
    least: int
    most: int
    cached: int = 0


@dataclass(frozen=True)
class Setup:
    """What a contender is told.

    Attributes:
        folder: Where caches, texts and vectors lie.
        texts: How many texts are stored; of part `scale`, how many keys.
        dim: Components of the stored vectors.
        asked: Which of the stored texts are asked for: "texts", all, or "tenth", a random tenth.
        model: Folder or hub name of the model that a real engine loads; "" for all-MiniLM-L6-v2.
        dtype: What a real engine computes in.
        turn: Number of the round, from 0.
        batches: The fresh texts of each call.
    """

    folder: Path
    texts: int = 0
    dim: int = 384
    asked: str = "texts"
    model: str = ""
    dtype: str = "float32"
    turn: int = 0
    batches: tuple[Batch, ...] = ()

    @property
    def result_bytes(self) -> int:
        """Of the matrix of the stored vectors that are asked for, float32."""
        return (self.texts // 10 if self.asked == "tenth" else self.texts) * self.dim * 4

    def to_json(self) -> str:
        """As one argument of a command line."""
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """What `to_json` made a string of."""
        found = json.loads(text)
        batches = tuple(Batch(**batch) for batch in found.pop("batches"))
        return cls(**{**found, "folder": Path(found["folder"]), "batches": batches})


@dataclass(frozen=True)
class Contender:
    """Something that does the work that is measured, and is ready to.

    Attributes:
        prepare: Is given n, from 0, and returns the n-th call to be timed. What `prepare` does
            itself is not timed.
        check: Is given what the n-th call returned, and n; raises if it is wrong.
    """

    prepare: Callable[[int], Callable[[], Any]]
    check: Callable[[Any, int], None]


def once(call: Callable[[], Any], check: Callable[[Any], None]) -> Contender:
    """A contender of whose process only the first call is of interest.

    Args:
        call: Does the work.
        check: Is given what it returned; raises if that is wrong.
    """

    def only_the_first(found: Any, number: int) -> None:
        assert number == 0, "only the first call of a process is of interest"
        check(found)

    return Contender(lambda number: call, only_the_first)


def nothing(found: Any) -> None:
    """Accepts anything."""
