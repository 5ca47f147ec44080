from __future__ import annotations

import pytest

from embcache.errors import InputError
from embcache.identity.keys import pair_keys, text_keys
from embcache.pipeline.request import PairRequest, TextRequest


def test_texts() -> None:
    request = TextRequest(texts=["a", "b"], prompt="p: ", prompt_type="query", task="T")
    assert len(request) == 2 and request.inputs([1, 0]) == ["p: b", "p: a"]
    assert (request.keys(b"i") == text_keys(b"i", "p: ", ["a", "b"])).all()
    expected = {"text": ["b"], "prompt": "p: ", "prompt_type": "query", "task": "T"}
    assert request.columns([1]) == expected
    assert request.show(1) == "'b'" and request.prompts == "prompt 'p: '"


def test_pairs() -> None:
    request = PairRequest(queries=["a", "b"], documents=["c", "d"], prefixes=("q: ", "d: "))
    assert len(request) == 2 and request.inputs([1]) == [("q: b", "d: d")]
    assert (request.keys(b"i") == pair_keys(b"i", ("q: ", "d: "), ["a", "b"], ["c", "d"])).all()
    assert request.columns([0])["document"] == ["c"]
    assert request.show(0) == "('a', 'c')" and request.prompts == "prefixes 'q: ' and 'd: '"


def test_long_texts_are_shortened_for_messages() -> None:
    assert len(TextRequest(texts=["x" * 999]).show(0)) < 100
    assert len(PairRequest(queries=["x" * 999], documents=["y" * 999]).show(0)) < 150


def test_pairs_need_two_of_a_length() -> None:
    with pytest.raises(InputError, match="inputs1 holds 2 texts and inputs2 1"):
        PairRequest(queries=["a", "b"], documents=["c"])


def test_sizes_are_those_of_inputs() -> None:
    texts = ["a" * 1000, "", "b" * 50]
    request = TextRequest(texts=texts, prompt="p" * 100)
    assert request.sizes([0, 2]).tolist() == pytest.approx([1100, 150], abs=120)
    pairs = PairRequest(queries=texts, documents=texts[::-1], suffixes=("", "s" * 500))
    assert pairs.sizes([0, 1]).tolist() == pytest.approx([1550, 500], abs=400)
