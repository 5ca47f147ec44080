from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from mteb.models import CrossEncoderProtocol, EncoderProtocol, vllm_wrapper

from embcache import (
    Cache,
    ConfigError,
    InputError,
    MissingTextsError,
    RefusedTextsError,
    VllmCrossEncoderWrapper,
    VllmEncoderWrapper,
)
from embcache.encoders.arguments import CacheArguments, PairArguments
from embcache.identity.identity import Identity
from tests.conftest import encode, loader, predict
from tests.fakes import Engines, FakeScoringEngine

Make = Callable[..., VllmCrossEncoderWrapper]


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "kwargs")
    }


def test_every_parameter_of_mteb_is_here_with_its_default() -> None:
    ours = parameters(VllmCrossEncoderWrapper.__init__)
    theirs = parameters(vllm_wrapper.VllmWrapperBase.__init__)
    theirs |= parameters(vllm_wrapper.VllmCrossEncoderWrapper.__init__)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name
    added = {*PairArguments.names(), *CacheArguments.names(), "make_engine"}
    assert ours.keys() - theirs.keys() == added
    predict_ = parameters(vllm_wrapper.VllmCrossEncoderWrapper.predict)
    assert parameters(VllmCrossEncoderWrapper.predict).keys() == predict_.keys()


def test_it_is_an_mteb_cross_encoder(make_cross_encoder: Make) -> None:
    encoder = make_cross_encoder()
    assert isinstance(encoder, CrossEncoderProtocol)
    assert not isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta is not None and encoder.mteb_model_meta.is_cross_encoder


def test_scores_are_one_number_a_pair(make_cross_encoder: Make) -> None:
    scores = predict(make_cross_encoder(), ["q", "q", "r"], ["d", "e", "d"])
    assert scores.shape == (3,) and scores.dtype == np.float32 and len(set(scores)) == 3


def test_a_refused_pair_holds_up_no_other(make_cross_encoder: Make) -> None:
    """Prefixes count for the engine; the message shows the caller's texts, and all rows."""
    encoder = make_cross_encoder(query_prefix="q: ")
    engine: Any = encoder._engine
    engine.refuse = {"q: b\0"}
    with pytest.raises(RefusedTextsError, match=r"2 of 4 pairs .* row 1, \('b', ''\), row 3") as e:
        predict(encoder, ["a", "b", "c", "b"], ["x", "", "y", ""])
    assert e.value.rows == [1, 3] and isinstance(e.value, ValueError)
    cached = make_cross_encoder(query_prefix="q: ", on_miss="raise")
    assert len(predict(cached, ["a", "c"], ["x", "y"])) == 2


def test_the_pair_is_ordered(make_cross_encoder: Make) -> None:
    encoder = make_cross_encoder()
    predict(encoder, ["a", "ab"], ["b", "c"])
    swapped = predict(encoder, ["b", "a"], ["a", "bc"])
    assert encoder.stats.hits == 0 and swapped.shape == (2,)
    predict(encoder, ["a", "ab"], ["b", "c"])
    assert encoder.stats.hits == 2


def test_both_prefixes_are_in_the_key(make_cross_encoder: Make) -> None:
    predict(make_cross_encoder(query_prefix="q: "), ["a"], ["b"])
    for prefixes in (
        {},
        {"document_prefix": "q: "},
        {"query_prefix": "q: ", "document_prefix": "d: "},
        {"query_prefix": "q"},
    ):
        encoder = make_cross_encoder(**prefixes)
        predict(encoder, ["a"], ["b"])
        assert encoder.stats.hits == 0, prefixes
    # The engine sees the same here as there, and still it is another row: no harm, no doubt.
    encoder = make_cross_encoder()
    predict(encoder, ["q: a"], ["b"])
    assert encoder.stats.hits == 0
    encoder = make_cross_encoder(query_prefix="q: ")
    predict(encoder, ["a"], ["b"])
    assert encoder.stats.hits == 1


def test_the_engine_gets_prefixes_and_texts(make_cross_encoder: Make) -> None:
    engine = FakeScoringEngine()
    encoder = make_cross_encoder(
        query_prefix="q: ", document_prefix="d: ", make_engine=lambda *_: engine
    )
    predict(encoder, ["a", "b"], ["c", "a longer document"])
    assert engine.encoded == ["q: a\0d: c", "q: b\0d: a longer document"]


def test_suffixes_and_template_reach_the_engine(make_cross_encoder: Make) -> None:
    made = Engines(lambda model, revision, arguments, *_: FakeScoringEngine(arguments=arguments))
    template = "{{ messages }}"
    given = {"query_suffix": " <q>", "document_suffix": " <d>", "chat_template": template}
    encoder = make_cross_encoder(query_prefix="q: ", make_engine=made, **given)
    predict(encoder, ["a"], ["b"])
    assert made[0].encoded == ["q: a <q>\0b <d>"]
    assert made[0].arguments["chat_template"] == template
    assert not {"query_suffix", "document_suffix"} & made[0].arguments.keys()


def test_suffixes_and_template_are_part_of_the_key(make_cross_encoder: Make) -> None:
    given = (
        {},
        {"query_suffix": "s"},
        {"document_suffix": "s"},
        {"query_prefix": "s"},
        {"query_suffix": "s", "document_suffix": "s"},
        {"chat_template": "{{ messages[0] }}"},
        {"chat_template": "{{ messages[1] }}"},
    )
    for hits in (0, 1):
        for one in given:
            encoder = make_cross_encoder(**one)
            predict(encoder, ["a"], ["b"])
            assert encoder.stats.hits == hits, one


def test_an_empty_suffix_and_no_template_change_no_key(make_cross_encoder: Make) -> None:
    given = {"query_suffix": "", "document_suffix": "", "chat_template": None}
    identity = make_cross_encoder(**given).identity
    assert identity == make_cross_encoder().identity
    assert identity.arguments == {"convert": "classify"}


def test_a_template_counts_by_its_content(make_cross_encoder: Make, tmp_path: Path) -> None:
    """As a text, as a file, and as a file of another name."""
    text = "{{ messages[0].content }}\n"
    for name in ("one.jinja", "two words"):
        (tmp_path / name).write_text(text)
    given = [text, str(tmp_path / "one.jinja"), tmp_path / "two words"]
    assert len({make_cross_encoder(chat_template=one).identity.to_json() for one in given}) == 1
    before = make_cross_encoder(chat_template=given[1]).identity
    (tmp_path / "one.jinja").write_text(text + " ")
    assert make_cross_encoder(chat_template=given[1]).identity != before


def test_a_checked_space_with_suffixes_is_sound(make_cross_encoder: Make, tmp_path: Path) -> None:
    """Keys are computed again from the columns, of which none holds a suffix."""
    predict(make_cross_encoder(query_suffix=" s", query_prefix="p "), ["a", "b"], ["c", "d"])
    check = Cache(tmp_path / "cache").space().check()
    assert check.rows == 2 and check.ok


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("no/such/file.jinja", r"chat_template='no/such/file.jinja' is neither a file"),
        ("", "chat_template='' is neither a file"),
        ("{% if %}", "is no Jinja template: line 1: Expected an expression"),
        ("{{ messages[0].content", "is no Jinja template: line 1"),
        (Path("no") / "such" / "file", "is neither a file here"),
    ],
)
def test_a_template_that_cannot_work(make_cross_encoder: Make, template: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_cross_encoder(chat_template=template)


def test_missing_pairs_are_shown_with_suffixes(make_cross_encoder: Make) -> None:
    encoder = make_cross_encoder(on_miss="raise", document_suffix=" <d>")
    with pytest.raises(MissingTextsError, match=r"prefixes '' and '', suffixes '' and ' <d>'"):
        predict(encoder, ["a"], ["b"])


def test_an_encoder_takes_no_template(make_encoder: Callable[..., VllmEncoderWrapper]) -> None:
    for name in ("chat_template", "query_suffix", "document_suffix"):
        with pytest.raises(ConfigError, match=f"{name} is no argument of this wrapper"):
            make_encoder(**{name: "x"})


def test_columns_on_disk(make_cross_encoder: Make, tmp_path: Path) -> None:
    predict(make_cross_encoder(query_prefix="q: "), ["a"], ["b"])
    database = lancedb.connect(str(tmp_path / "cache"))
    table = database.open_table(database.list_tables().tables[0]).to_arrow()
    assert str(table.schema.field("score").type) == "float"
    [row] = table.to_pylist()
    found = {name: row[name] for name in ("query", "document", "query_prefix", "document_prefix")}
    assert found == {"query": "a", "document": "b", "query_prefix": "q: ", "document_prefix": ""}
    assert row["task"] == "STS13" and row["n_tokens"] is not None and len(row["key"]) == 16
    identity = Identity.from_json(table.schema.metadata[b"embcache:identity"].decode())
    assert identity.arguments == {"convert": "classify"}


def test_without_texts_on_disk(make_cross_encoder: Make, tmp_path: Path) -> None:
    scores = predict(make_cross_encoder(store_text=False), ["a"], ["b"])
    database = lancedb.connect(str(tmp_path / "cache"))
    names = database.open_table(database.list_tables().tables[0]).schema.names
    assert names == ["key", "score", "checksum", "task", "n_tokens", "created_at"]
    assert (predict(make_cross_encoder(on_miss="raise"), ["a"], ["b"]) == scores).all()


def test_one_cache_for_encoder_and_cross_encoder(
    make_cross_encoder: Make, make_encoder: Callable[..., VllmEncoderWrapper]
) -> None:
    """Even of one model: they are two spaces."""
    vectors = encode(make_encoder(), ["a"])
    scores = predict(make_cross_encoder(), ["a"], ["a"])
    assert vectors.shape == (1, 8) and scores.shape == (1,)
    assert encode(make_encoder(on_miss="raise"), ["a"]).tobytes() == vectors.tobytes()
    assert predict(make_cross_encoder(on_miss="raise"), ["a"], ["a"]).tobytes() == scores.tobytes()


def test_not_as_many_queries_as_documents(make_cross_encoder: Make) -> None:
    with pytest.raises(InputError, match="inputs1 holds 1 texts and inputs2 2"):
        predict(make_cross_encoder(), ["a"], ["b", "c"])


def test_missing_pairs_are_shown(make_cross_encoder: Make) -> None:
    encoder = make_cross_encoder(on_miss="raise", query_prefix="q: ")
    message = r"1 of 1 pairs are not cached .*prefixes 'q: ' and ''.*\('a', 'b'\)"
    with pytest.raises(MissingTextsError, match=message):
        predict(encoder, ["a"], ["b"])


def test_a_text_that_is_none(make_cross_encoder: Make) -> None:
    with pytest.raises(InputError, match="row 1 has no text"):
        make_cross_encoder().predict(
            loader(["a", None]),  # type: ignore[list-item]
            loader(["b", "c"]),
            task_metadata=None,  # type: ignore[arg-type]
            hf_split="test",
            hf_subset="default",
        )


def test_a_damaged_score_is_scored_again(make_cross_encoder: Make, tmp_path: Path) -> None:
    queries, documents = [f"q{i}" for i in range(50)], [f"d{i}" for i in range(50)]
    scores = predict(make_cross_encoder(), queries, documents)
    [data] = (tmp_path / "cache").glob("*.lance/data/*.lance")
    raw = bytearray(data.read_bytes())
    at = raw.index(scores[17].tobytes())
    raw[at] ^= 1
    data.write_bytes(bytes(raw))
    encoder = make_cross_encoder()
    assert (predict(encoder, queries, documents) == scores).all()
    assert encoder.stats.encoded == 1


def test_wrong_arguments(make_cross_encoder: Make) -> None:
    with pytest.raises(ConfigError, match="on_miss='never' is unknown"):
        make_cross_encoder(on_miss="never")
    with pytest.raises(ConfigError, match="dtype='int3' is unknown"):
        make_cross_encoder(dtype="int3")


def test_cleanup_goes_on_to_work(make_cross_encoder: Make) -> None:
    encoder = make_cross_encoder()
    predict(encoder, ["a"], ["b"])
    encoder.cleanup()
    assert predict(encoder, ["a", "c"], ["b", "d"]).shape == (2,)
