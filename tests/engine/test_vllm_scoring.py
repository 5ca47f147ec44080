"""Real vLLM as a cross-encoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embcache import EngineError, RefusedTextsError, VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.engine.vllm import VllmScoringEngine
from tests.conftest import encode, predict
from tests.fakes import Shared
from tests.models import save_bert, save_cross_encoder, without_special_tokens

pytestmark = pytest.mark.engine

QUERIES = [f"what is number {i % 7}?" for i in range(60)]
DOCUMENTS = [f"the number {i} is " + "very " * (i * 7 % 40) + "odd" for i in range(60)]
DOCUMENTS[4] = "cut somewhere, " * 900
QUERIES[5] = "ein Text mit Ümlauten, 日本語 and 😀"


def plain_scores(engine: VllmScoringEngine, queries: list[str], documents: list[str]) -> Any:
    outputs = engine._llm.score(
        queries, documents, tokenization_kwargs={"truncate_prompt_tokens": -1}, use_tqdm=False
    )
    return np.array([output.outputs.score for output in outputs], np.float32)


def test_scores_are_those_of_llm_score(
    real_cross_encoder: Any, real_scoring_engine: VllmScoringEngine
) -> None:
    scores = predict(real_cross_encoder(), QUERIES, DOCUMENTS)
    assert (scores == plain_scores(real_scoring_engine, QUERIES, DOCUMENTS)).all()
    assert len(set(scores.tolist())) > 50


def test_prefixes_are_put_in_front(
    real_cross_encoder: Any, real_scoring_engine: VllmScoringEngine
) -> None:
    encoder = real_cross_encoder(query_prefix="query: ", document_prefix="passage: ")
    scores = predict(encoder, QUERIES[:9], DOCUMENTS[:9])
    expected = plain_scores(
        real_scoring_engine,
        ["query: " + query for query in QUERIES[:9]],
        ["passage: " + document for document in DOCUMENTS[:9]],
    )
    assert (scores == expected).all()


TEMPLATE = """<Instruct>: which answers?
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}
"""


def with_template(engine: VllmScoringEngine, template: str | None) -> Any:
    """The shared engine, as if it had been made with a template."""
    other = copy.copy(engine)
    other._template = template
    return Shared(other)


def test_a_template_is_applied_as_by_llm_score(
    real_cross_encoder: Any, real_scoring_engine: VllmScoringEngine, tmp_path: Path
) -> None:
    (tmp_path / "score.jinja").write_text(TEMPLATE)
    outputs = real_scoring_engine._llm.score(
        QUERIES[:9],
        DOCUMENTS[:9],
        chat_template=TEMPLATE,
        tokenization_kwargs={"truncate_prompt_tokens": -1},
        use_tqdm=False,
    )
    expected = np.array([output.outputs.score for output in outputs], np.float32)
    made: list[Any] = []

    def make(model: str, revision: str | None, arguments: dict[str, Any], *_: Any) -> Any:
        made.append(arguments)
        # What VllmScoringEngine itself makes of these arguments.
        own = VllmScoringEngine(model, revision, arguments)
        assert "chat_template" not in own._arguments
        return with_template(real_scoring_engine, own._template)

    for template in (TEMPLATE, tmp_path / "score.jinja"):
        encoder = real_cross_encoder(chat_template=template, make_engine=make)
        scores = predict(encoder, QUERIES[:9], DOCUMENTS[:9])
        assert scores.tobytes() == expected.tobytes()
    assert encoder.stats.hits == 9 and made[0]["chat_template"] == TEMPLATE
    plain = predict(real_cross_encoder(), QUERIES[:9], DOCUMENTS[:9])
    assert np.abs(plain - expected).max() > 1e-3


def test_suffixes_are_put_behind(
    real_cross_encoder: Any, real_scoring_engine: VllmScoringEngine
) -> None:
    given = {"query_suffix": " </q>", "document_suffix": " </d>", "document_prefix": "passage: "}
    scores = predict(real_cross_encoder(**given), QUERIES[:9], DOCUMENTS[:9])
    expected = plain_scores(
        real_scoring_engine,
        [query + " </q>" for query in QUERIES[:9]],
        [f"passage: {document} </d>" for document in DOCUMENTS[:9]],
    )
    assert (scores == expected).all()


def test_scores_agree_with_sentence_transformers(
    real_cross_encoder: Any, cross_encoder_path: str
) -> None:
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(cross_encoder_path, device="cpu")
    expected = theirs.predict(list(zip(QUERIES, DOCUMENTS, strict=True)))
    scores = predict(real_cross_encoder(), QUERIES, DOCUMENTS)
    assert np.abs(scores - expected).max() < 1e-4


def test_one_pair_and_an_empty_document(
    real_cross_encoder: Any, real_scoring_engine: VllmScoringEngine
) -> None:
    for queries, documents in ((["a"], ["b"]), (["a", "b", ""], ["", "a", "b"])):
        scores = predict(real_cross_encoder(), queries, documents)
        expected = plain_scores(real_scoring_engine, queries, documents)
        assert np.abs(scores - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("save", "refused"),
    [
        (save_cross_encoder, [1]),  # joined: one text without tokens is enough
        (save_bert, [1, 2, 3]),  # each by itself, then their cosine
    ],
)
def test_pairs_without_tokens(tmp_path: Path, save: Any, refused: list[int]) -> None:
    """A tokenizer that adds no special tokens: vLLM is asked which pairs it takes."""
    model = without_special_tokens(save(tmp_path / "model"))
    kwargs: Any = {"dtype": "float32", "enforce_eager": True, "cache_path": tmp_path / "cache"}
    encoder = VllmCrossEncoderWrapper(model, **kwargs)
    queries, documents = ["a", "", "\u200b", "a", "b"], ["x", " ", "y", "", "z " * 3000]
    with pytest.raises(
        RefusedTextsError, match=r"row 1, \('', ' '\).*: is refused by vLLM \(.*cannot be empty"
    ) as error:
        predict(encoder, queries, documents)
    assert error.value.rows == refused
    good = [row for row in range(5) if row not in refused]
    pairs = [queries[row] for row in good], [documents[row] for row in good]
    engine: Any = encoder._engine
    prepared = engine.prepare([("a", "x y"), ("lone \ud800", "b"), ("", "lone \ud800")])
    assert [*prepared.refused] == [1, 2] and prepared.lengths[0] == 3
    assert "is refused by the tokenizer" in prepared.refused[2]
    scores = plain_scores(engine, *pairs)
    encoder.cleanup()
    cached = VllmCrossEncoderWrapper(model, on_miss="raise", **kwargs)
    assert np.abs(predict(cached, *pairs) - scores).max() < 1e-6


def test_an_encoder_scores_by_cosine_as_in_vllm(tmp_path: Path) -> None:
    """`LLM.score` of a model without a classification head."""
    folder = tmp_path / "encoder"
    save_bert(folder)
    kwargs: Any = {"dtype": "float32", "enforce_eager": True}
    scorer = VllmCrossEncoderWrapper(str(folder), cache_path=tmp_path / "cache", **kwargs)
    encoder = VllmEncoderWrapper(str(folder), cache_path=tmp_path / "cache", **kwargs)
    try:
        scores = predict(scorer, ["a", "a"], ["b", "a long document"])
        query, *documents = encode(encoder, ["a", "b", "a long document"])
    finally:
        scorer.cleanup()
        encoder.cleanup()
    assert np.abs(scores - np.stack(documents) @ query).max() < 1e-5


def test_a_classifier_of_several_labels(tmp_path: Path) -> None:
    """vLLM's own words are passed on."""
    save_cross_encoder(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    settings = json.loads(config.read_text())
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config.write_text(json.dumps(settings | labels))
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].repeat(2, *[1] * (tensors[name].ndim - 1))
    save_file(tensors, weights, metadata={"format": "pt"})
    encoder = VllmCrossEncoderWrapper(
        str(tmp_path / "model"), dtype="float32", enforce_eager=True, cache_path=tmp_path / "cache"
    )
    with pytest.raises(EngineError, match="Scoring API is only enabled for num_labels == 1"):
        predict(encoder, ["a"], ["b"])
    encoder.cleanup()
