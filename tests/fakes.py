"""Fast engines and a model that count what they are asked: never for quality."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from embcache.engine.base import Embedded, Prepared
from embcache.pipeline.canary_texts import LONG


def fake_vector(text: str, dim: int = 8) -> np.ndarray:
    """A vector that only this text has."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def are_canaries(texts: Sequence[str]) -> bool:
    """Whether these are a space's canaries, which fakes count apart."""
    return any(LONG in text for text in texts)


class FakeEngine:
    """Vectors by hash of prompt + text.

    Attributes:
        canaries: How often canaries were embedded, which is counted nowhere else.
        changed: Added to every vector, as by another model of the same name.
        starts: How often it was started.
        refuse: Texts (prompt included) that it refuses.
        chunks: The texts of each `embed`, in order.
    """

    version = "fake 1.0"

    def __init__(
        self,
        dim: int = 8,
        dtype: str = "float32",
        batch_size: int = 4,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.dim = dim
        self.batch_size = batch_size
        self.arguments = dict(arguments or {})
        self.actual_dtype = dtype
        self.starts = 0
        self.started = False
        self.chunks: list[list[str]] = []
        self.canaries = 0
        self.changed = 0.0
        self.refuse: set[str] = set()
        self.poison: dict[str, float] = {}
        self.fail_on_chunk: BaseException | None = None
        self.fail_after = 0

    @property
    def dtype(self) -> str:
        assert self.started
        return self.actual_dtype

    @property
    def encoded(self) -> list[str]:
        """All texts that were embedded."""
        return [text for chunk in self.chunks for text in chunk]

    def start(self) -> None:
        self.starts += not self.started
        self.started = True

    def prepare(self, texts: Sequence[str]) -> Prepared:
        self.start()
        refused = {i: "is refused by the fake" for i, t in enumerate(texts) if t in self.refuse}
        lengths = np.array([len(text.split()) for text in texts], np.int64)
        return Prepared(list(texts), lengths, refused=refused)

    def embed(self, prompts: Sequence[Any]) -> Embedded:
        self.start()
        if are_canaries(prompts):
            self.canaries += 1
        elif self.fail_on_chunk is not None and len(self.chunks) >= self.fail_after:
            raise self.fail_on_chunk
        else:
            self.chunks.append(list(prompts))
        vectors = np.stack([fake_vector(text, self.dim) for text in prompts]) + self.changed
        for row, text in enumerate(prompts):
            if text in self.poison:
                vectors[row, 0] = self.poison[text]
        n_tokens = np.array([len(text.split()) for text in prompts], np.int32)
        return Embedded(vectors, n_tokens)

    def close(self) -> None:
        self.started = False


class FakeScoringEngine(FakeEngine):
    """Scores by hash of query and document."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dim=1, **kwargs)

    def prepare(self, inputs: Sequence[Any]) -> Prepared:
        prepared = super().prepare([f"{query}\0{document}" for query, document in inputs])
        return replace(prepared, in_order=True)


class FakeModel(AbsEncoder):
    """An mteb encoder that counts what it is asked; its prompts depend on the prompt type.

    Attributes:
        canaries: How often it was asked for canaries, which is counted nowhere else.
        changed: Added to every vector, as by another model of the same name.
        calls: The texts of each `encode`, in order.
    """

    def __init__(
        self, name: str | None = "org/fake", revision: str | None = "1", dim: int = 8, **meta: Any
    ) -> None:
        overwrites = {"name": name, "revision": revision, **meta}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=overwrites)
        self.dim = dim
        self.calls: list[list[str]] = []
        self.canaries = 0
        self.changed = 0.0
        self.kwargs: list[dict[str, Any]] = []

    @property
    def encoded(self) -> list[str]:
        """All texts that were embedded."""
        return [text for call in self.calls for text in call]

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        if are_canaries(texts):
            self.canaries += 1
        else:
            self.calls.append(texts)
            self.kwargs.append({"hf_split": hf_split, "hf_subset": hf_subset, **kwargs})
        vectors = [fake_vector(f"{prompt_type}|{text}", self.dim) for text in texts]
        return np.stack(vectors) + np.float32(self.changed)


class Engines(list[Any]):
    """A `make_engine` that keeps what it makes."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self._make = make

    def __bool__(self) -> bool:
        return True  # also before the first: `make_engine or VllmEngine`

    def __call__(self, *args: Any) -> Any:
        self.append(self._make(*args))
        return self[-1]


class Shared:
    """An engine that several encoders use: none of them closes it.

    Args:
        engine: The engine.
        dtype: What it says that it computes in; its own unless given.
    """

    def __init__(self, engine: Any, dtype: str | None = None) -> None:
        self._engine = engine
        if dtype is not None:
            self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """It is everybody's."""
