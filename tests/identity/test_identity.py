from __future__ import annotations

import enum
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcache import CacheFormatError, ConfigError
from embcache.identity.identity import (
    SPEED_ARGUMENTS,
    Identity,
    normalize_dtype,
    readable_name,
    vector_arguments,
)


def fingerprint(**arguments: Any) -> str:
    return Identity("m", "r", "float32", vector_arguments(arguments)).fingerprint()


@pytest.mark.parametrize("name", sorted(SPEED_ARGUMENTS))
def test_speed_arguments_change_nothing(name: str) -> None:
    assert fingerprint(**{name: 7}) == fingerprint()


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_model_len": 128},
        {"pooler_config": {"seq_pooling_type": "CLS"}},
        {"hf_overrides": {"num_hidden_layers": 2}},
        {"head_dtype": "float32"},
        {"quantization": "fp8"},
        {"trust_remote_code": False},
        {"an_argument_of_the_future": 1},
        {"an_argument_of_the_future": None},
        {"seed": 1},
    ],
    ids=str,
)
def test_everything_else_makes_a_new_space(arguments: dict[str, Any]) -> None:
    assert fingerprint(**arguments) != fingerprint()


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_model_len": None, "quantization": None, "trust_remote_code": True},
        {"hf_overrides": {}},
        {"hf_overrides": None, "pooler_config": None, "head_dtype": None},
        {"pooler_config": {}},
        {"pooler_config": {"dimensions": None}},
    ],
    ids=str,
)
def test_defaults_said_aloud_change_nothing(arguments: dict[str, Any]) -> None:
    assert fingerprint(**arguments) == fingerprint()


def test_model_revision_and_dtype_make_new_spaces() -> None:
    base = Identity("m", "r", "float32")
    others = [Identity("n", "r", "float32"), Identity("m", "s", "float32"), base.with_dtype("half")]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_head_dtype_is_an_override() -> None:
    """mteb merges the one into the other, so both ways of saying it are one space."""
    assert fingerprint(head_dtype="float32") == fingerprint(hf_overrides={"head_dtype": "float32"})


def test_a_pooler_config_and_its_fields_are_one_space() -> None:
    @dataclass
    class PoolerConfig:
        seq_pooling_type: str | None = None
        dimensions: int | None = None

    assert fingerprint(pooler_config=PoolerConfig("CLS")) == fingerprint(
        pooler_config={"seq_pooling_type": "CLS"}
    )
    assert fingerprint(pooler_config=PoolerConfig()) == fingerprint()


def test_dataclass_without_defaults() -> None:
    @dataclass
    class Needs:
        what: str

    assert fingerprint(x=Needs("a")) != fingerprint(x=Needs("b"))


def test_order_of_dicts_does_not_matter() -> None:
    assert fingerprint(hf_overrides={"a": 1, "b": 2}) == fingerprint(hf_overrides={"b": 2, "a": 1})


def test_values_have_one_canonical_form() -> None:
    class Kind(enum.Enum):
        A = "a"

    arguments = vector_arguments(
        {"x": Kind.A, "y": Path("p"), "z": {3, 1}, "d": torch.float16, "t": (1, 2)}
    )
    assert arguments == {"x": "a", "y": "p", "z": [1, 3], "d": "float16", "t": [1, 2]}


def test_a_function_cannot_be_part_of_a_key() -> None:
    with pytest.raises(ConfigError, match=r"hf_overrides=.*function has no canonical form"):
        vector_arguments({"hf_overrides": lambda config: config})


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ("half", "float16"),
        ("float", "float32"),
        ("Float32", "float32"),
        (torch.bfloat16, "bfloat16"),
    ],
)
def test_dtype_synonyms(given_: object, name: str) -> None:
    assert normalize_dtype(given_) == name


@pytest.mark.parametrize("bad", ["fp16", "int8", "", None, 16])
def test_unknown_dtype_is_named_with_the_choices(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"dtype=.* is unknown\. Use one of float32, "):
        normalize_dtype(bad)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("intfloat/e5-small", "intfloat--e5-small"),
        ("gpt2", "gpt2"),
        ("/home/me/models/my model", "models--my-model"),
        ("./ckpt", "ckpt"),
        ("../runs/größe/", "runs--gr-e"),
        ("/", "model"),
    ],
)
def test_table_names_are_readable(model: str, name: str) -> None:
    assert readable_name(model) == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), json_values, max_size=4))
def test_identity_survives_json(arguments: dict[str, Any]) -> None:
    identity = Identity("m", "r", "float32", vector_arguments(arguments))
    assert Identity.from_json(identity.to_json()) == identity


WRITTEN = Identity("m", "r", "float32", {"max_model_len": 8})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"pooling_backend": "x"},
            r"fields that this embcache does not know: \['pooling_backend'\]",
        ),
        ({"model": 1}, "model is a int, 1, not a str"),
        ({"revision": None}, "revision is a NoneType"),
        ({"engine": ["vllm"]}, "engine is a list"),
        ({"arguments": "{}"}, "arguments is a str"),
        ({"arguments": [["a", 1]]}, "arguments is a list"),
        ({"dtype": "../../../tmp/x"}, r"dtype, '\.\./\.\./\.\./tmp/x', is not the name of one"),
        ({"dtype": ""}, "is not the name of one"),
        ({"dtype": "float32\n"}, "is not the name of one"),
    ],
    ids=str,
)
def test_a_strange_identity_is_refused_in_words(changes: dict[str, Any], why: str) -> None:
    changed = {**json.loads(WRITTEN.to_json()), **changes}
    with pytest.raises(CacheFormatError, match=why):
        Identity.from_json(json.dumps(changed))


@pytest.mark.parametrize("name", [f.name for f in fields(Identity)])
def test_no_field_may_be_missing(name: str) -> None:
    left = json.loads(WRITTEN.to_json())
    del left[name]
    with pytest.raises(CacheFormatError, match=rf"lacks the fields \['{name}'\]"):
        Identity.from_json(json.dumps(left))


def test_what_is_no_json_is_refused_in_words() -> None:
    with pytest.raises(CacheFormatError, match="The identity has the name 'model' twice"):
        Identity.from_json(WRITTEN.to_json().replace("{", '{"model":"another",', 1))
