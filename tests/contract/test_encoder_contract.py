"""What every encoder with a cache keeps, whatever is behind it: one suite for all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from embcache import CachedEncoder, MissingTextsError
from tests.conftest import encode, predict
from tests.fakes import FakeModel

PROMPTS = {"query": "query: ", "document": "passage: "}
QUERY = "the query of every pair"


@dataclass
class Subject:
    """One way to have a cache.

    Attributes:
        make: An encoder over the test's one cache.
        run: Its values for texts, `(n, dim)`.
        as_query_document_and_bare: Values of the same texts in three roles.
        slow: Whether it computes for real.
        model: What a CachedEncoder wraps.
    """

    make: Callable[..., Any]
    run: Callable[..., np.ndarray]
    as_query_document_and_bare: Callable[[list[str]], list[np.ndarray]]
    slow: bool
    model: Any = None


def vllm_encoder(make: Callable[..., Any], slow: bool) -> Subject:
    def roles(texts: list[str]) -> list[np.ndarray]:
        encoder = make(prompt_dict=PROMPTS)
        kinds = (PromptType.query, PromptType.document, None)
        return [encode(encoder, texts, prompt_type=kind) for kind in kinds]

    return Subject(make, encode, roles, slow)


def vllm_cross_encoder(make: Callable[..., Any], slow: bool) -> Subject:
    def run(encoder: Any, texts: list[str]) -> np.ndarray:
        scores = predict(encoder, [QUERY] * len(texts), texts)
        assert scores.shape == (len(texts),) and scores.dtype == np.float32
        return scores[:, None]

    def roles(texts: list[str]) -> list[np.ndarray]:
        prefixes = ({"query_prefix": "query: "}, {"document_prefix": "query: "}, {})
        return [run(make(**kwargs), texts) for kwargs in prefixes]

    return Subject(make, run, roles, slow)


def cached_encoder(model: Any, cache: Path, slow: bool) -> Subject:
    def make(**kwargs: Any) -> CachedEncoder:
        return CachedEncoder(model, **{"cache_path": cache, **kwargs})

    def roles(texts: list[str]) -> list[np.ndarray]:
        kinds = (PromptType.query, PromptType.document, None)
        return [encode(make(), texts, prompt_type=kind) for kind in kinds]

    return Subject(make, encode, roles, slow, model)


ENGINE = pytest.mark.engine


@pytest.fixture(
    params=[
        "VllmEncoderWrapper, fake",
        "VllmCrossEncoderWrapper, fake",
        "CachedEncoder, fake",
        "CachedEncoder, Sentence Transformers",
        pytest.param("VllmEncoderWrapper, vLLM", marks=ENGINE),
        pytest.param("VllmCrossEncoderWrapper, vLLM", marks=ENGINE),
    ]
)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    kind, engine = request.param.split(", ")
    fixture = request.getfixturevalue
    if kind == "VllmEncoderWrapper":
        slow = engine == "vLLM"
        return vllm_encoder(fixture("real_encoder" if slow else "make_encoder"), slow)
    if kind == "VllmCrossEncoderWrapper":
        slow = engine == "vLLM"
        make = fixture("real_cross_encoder" if slow else "make_cross_encoder")
        return vllm_cross_encoder(make, slow)
    if engine == "fake":
        return cached_encoder(FakeModel(), tmp_path / "cache", slow=False)
    model = SentenceTransformerEncoderWrapper(
        fixture("model_path"), device="cpu", model_prompts=PROMPTS
    )
    return cached_encoder(model, tmp_path / "cache", slow=True)


def test_order_and_duplicates(subject: Subject) -> None:
    texts = ["b", "a", "c", "a", "a much longer text than the others", "b"]
    values = subject.run(subject.make(), texts)
    assert values.shape[0] == 6 and values.dtype == np.float32
    assert (values[0] == values[5]).all() and (values[1] == values[3]).all()
    assert len({row.tobytes() for row in values}) == 4
    turned = subject.run(subject.make(), texts[::-1])
    assert turned[::-1].tobytes() == values.tobytes()


def test_empty_input(subject: Subject) -> None:
    encoder = subject.make()
    assert subject.run(encoder, []).shape[0] == 0
    dim = subject.run(encoder, ["a"]).shape[1]
    assert subject.run(encoder, []).shape == (0, dim)


def test_one_text(subject: Subject) -> None:
    assert subject.run(subject.make(), ["a"]).shape[0] == 1


def test_warm_is_bit_identical_and_encodes_nothing(subject: Subject) -> None:
    texts = [f"text {i} " * (1 + i % 9) for i in range(50)] + ["", " ", "😀", "ß" * 300]
    cold = subject.run(subject.make(), texts)
    for kwargs in ({}, {"on_miss": "raise"}, {"read_only": True}):
        warm_encoder = subject.make(**kwargs)
        warm = subject.run(warm_encoder, texts)
        assert warm.tobytes() == cold.tobytes()
        assert warm_encoder.stats.encoded == 0 and warm_encoder.stats.hits == 54


def test_part_cached_part_not(subject: Subject) -> None:
    one = subject.run(subject.make(), ["a", "b", "c"])
    encoder = subject.make()
    both = subject.run(encoder, ["d", "c", "a", "e"])
    assert (both[1] == one[2]).all() and (both[2] == one[0]).all()
    assert encoder.stats.hits == 2 and encoder.stats.encoded == 2


def test_what_is_missing_is_counted(subject: Subject) -> None:
    subject.run(subject.make(), ["a"])
    with pytest.raises(MissingTextsError, match=r"2 of 3 (texts|pairs) are not cached"):
        subject.run(subject.make(on_miss="raise"), ["a", "b", "c"])


def test_query_and_document_prompts_are_kept_apart(subject: Subject) -> None:
    cold = subject.as_query_document_and_bare(["the same text", "another"])
    query, document, bare = cold
    assert (query != document).any() and (query != bare).any() and (document != bare).any()
    warm = subject.as_query_document_and_bare(["the same text", "another"])
    assert [x.tobytes() for x in warm] == [x.tobytes() for x in cold]


def test_ten_thousand_texts(subject: Subject) -> None:
    distinct = 500 if subject.slow else 10_000
    texts = [f"{i % distinct}" for i in range(10_000)]
    cold = subject.run(subject.make(), texts)
    encoder = subject.make(on_miss="raise")
    warm = subject.run(encoder, texts)
    assert cold.shape[0] == 10_000 and cold.tobytes() == warm.tobytes()
    assert encoder.stats.unique == distinct


def test_results_are_the_callers_own(subject: Subject) -> None:
    """Writing into a result changes neither the cache nor a later result."""
    encoder = subject.make()
    first = subject.run(encoder, ["a"])
    kept = first.copy()
    first[:] = 0
    assert (subject.run(encoder, ["a"]) == kept).all()


def test_a_warm_encoder_never_asks_its_engine(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.run(subject.make(), ["a"])

    class Forbidden:
        version = "none"
        batch_size = 1

        def close(self) -> None:
            """As every encoder does in the end."""

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the engine was asked for {name}")

    if subject.model is None:
        encoder = subject.make(make_engine=lambda *_: Forbidden())
    else:
        encoder = subject.make(canaries=False)
        monkeypatch.setattr(type(subject.model), "encode", _forbidden)
    assert subject.run(encoder, ["a"]).shape[0] == 1


def _forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the model was asked to encode")


def test_without_a_cache(subject: Subject) -> None:
    encoder = subject.make(cache_path=None)
    first, second = (subject.run(encoder, ["a", "b", "a"]) for _ in range(2))
    assert first.tobytes() == second.tobytes() and encoder.stats.encoded == 2


def test_totals_add_up(subject: Subject) -> None:
    encoder = subject.make()
    subject.run(encoder, ["a", "b", "a"])
    subject.run(encoder, ["b", "c"])
    total = encoder.total
    assert (total.texts, total.unique, total.hits, total.encoded) == (5, 4, 1, 3)


def test_threads_share_one_encoder(subject: Subject) -> None:
    """Each gets its own texts' values, and every call is counted."""
    encoder = subject.make()
    calls = [[f"text {(n * 5 + i * 3) % 40}" for i in range(12)] for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda texts: subject.run(encoder, texts), calls))
    assert encoder.total.texts == 24 * 12
    assert encoder.total.encoded == len({text for call in calls for text in call})
    for texts, result in zip(calls, results, strict=True):
        assert result.tobytes() == subject.run(encoder, texts).tobytes()
