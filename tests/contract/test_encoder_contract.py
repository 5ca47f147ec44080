"""What every encoder with a cache keeps, whatever is behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mteb.types import PromptType

from embcache import VllmEncoderWrapper
from tests.conftest import encode

Make = Callable[..., VllmEncoderWrapper]
PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture(
    params=["make_encoder", pytest.param("real_encoder", marks=pytest.mark.engine)],
    ids=["fake engine", "vLLM"],
)
def make(request: pytest.FixtureRequest) -> Make:
    factory: Make = request.getfixturevalue(request.param)
    return factory


def test_order_and_duplicates(make: Make) -> None:
    texts = ["b", "a", "c", "a", "a much longer text than the others", "b"]
    vectors = encode(make(), texts)
    assert vectors.shape[0] == 6 and vectors.dtype == np.float32
    assert (vectors[0] == vectors[5]).all() and (vectors[1] == vectors[3]).all()
    assert len({row.tobytes() for row in vectors}) == 4
    turned = encode(make(), texts[::-1])
    assert turned[::-1].tobytes() == vectors.tobytes()


def test_empty_input(make: Make) -> None:
    encoder = make()
    assert encode(encoder, []).shape[0] == 0
    dim = encode(encoder, ["a"]).shape[1]
    assert encode(encoder, []).shape == (0, dim)


def test_one_text(make: Make) -> None:
    assert encode(make(), ["a"]).shape[0] == 1


def test_warm_is_bit_identical_and_encodes_nothing(make: Make) -> None:
    texts = [f"text {i} " * (1 + i % 9) for i in range(50)] + ["", " ", "😀", "ß" * 300]
    cold = encode(make(), texts)
    for kwargs in ({}, {"on_miss": "raise"}, {"read_only": True}):
        warm_encoder = make(**kwargs)
        warm = encode(warm_encoder, texts)
        assert warm.tobytes() == cold.tobytes()
        assert warm_encoder.stats.encoded == 0 and warm_encoder.stats.hits == 54


def test_part_cached_part_not(make: Make) -> None:
    one = encode(make(), ["a", "b", "c"])
    encoder = make()
    both = encode(encoder, ["d", "c", "a", "e"])
    assert (both[1] == one[2]).all() and (both[2] == one[0]).all()
    assert encoder.stats.hits == 2 and encoder.stats.encoded == 2


def test_query_and_document_prompts_are_kept_apart(make: Make) -> None:
    encoder = make(prompt_dict=PROMPTS)
    query, document, none = (
        encode(encoder, ["the same text"], prompt_type=kind)
        for kind in (PromptType.query, PromptType.document, None)
    )
    assert (query != document).any() and (query != none).any() and (document != none).any()
    assert encoder.total.encoded == 3


def test_ten_thousand_texts(make: Make, request: pytest.FixtureRequest) -> None:
    if "vLLM" in request.node.name:
        texts = [f"{i % 500}" for i in range(10_000)]
    else:
        texts = [f"{i}" for i in range(10_000)]
    cold = encode(make(), texts)
    warm = encode(make(on_miss="raise"), texts)
    assert cold.shape[0] == 10_000 and cold.tobytes() == warm.tobytes()


def test_results_are_the_callers_own(make: Make) -> None:
    """Writing into a result changes neither the cache nor a later result."""
    encoder = make()
    first = encode(encoder, ["a"])
    kept = first.copy()
    first[:] = 0
    assert (encode(encoder, ["a"]) == kept).all()


def test_a_warm_encoder_never_starts_its_engine(make: Make) -> None:
    encode(make(), ["a"])
    encoder = make()

    class Forbidden:
        version = "none"
        batch_size = 1

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the engine was asked for {name}")

    encoder._engine = Forbidden()  # type: ignore[assignment]
    assert encode(encoder, ["a"]).shape[0] == 1
