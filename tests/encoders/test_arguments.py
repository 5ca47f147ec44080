from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from embcache import CachedEncoder, ConfigError, VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.encoders.arguments import (
    CacheArguments,
    EngineArguments,
    PairArguments,
    PromptArguments,
    VectorArguments,
    takes,
)
from tests.conftest import run_python

KINDS = (EngineArguments, PromptArguments, CacheArguments, VectorArguments)
EVERY_KIND = (*KINDS, PairArguments)


def documented(function: Any) -> list[str]:
    """Names in a docstring's Args section, in their order."""
    section = inspect.getdoc(function).split("\nArgs:\n")[1].split("\n\n")[0]  # type: ignore[union-attr]
    return re.findall(r"^    \*{0,2}(\w+): ", section, re.MULTILINE)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_field_says_what_it_is(kind: type[EngineArguments]) -> None:
    for field in kind.fields():
        line = field.metadata["doc"]
        assert line.endswith(".") and "\n" not in line and len(line) < 120, field.name


def test_the_docstring_of_the_encoder_has_every_argument_in_its_order() -> None:
    shown = [*inspect.signature(VllmEncoderWrapper).parameters]
    assert documented(VllmEncoderWrapper) == shown
    fields = [name for kind in KINDS for name in kind.names()]
    assert shown == ["model", "revision", *fields, "make_engine", "kwargs"]


def test_the_docstring_of_the_cross_encoder_has_its_own_arguments() -> None:
    """And leaves the engine's to the encoder's."""
    shown = [*inspect.signature(VllmCrossEncoderWrapper).parameters]
    engine = EngineArguments.names()
    assert documented(VllmCrossEncoderWrapper) == [name for name in shown if name not in engine]
    first = ["model", "revision", "query_prefix", "document_prefix"]
    pair = [*PairArguments.names(), *CacheArguments.names()]
    assert shown == [*first, *engine, *pair, "make_engine", "kwargs"]


def test_the_cached_encoder_has_the_same_defaults() -> None:
    parameters = inspect.signature(CachedEncoder).parameters
    for field in (*CacheArguments.fields(), *VectorArguments.fields()):
        assert parameters[field.name].default == field.default, field.name


def test_what_is_not_given_has_its_default() -> None:
    given = {"on_miss": "raise", "seed": 1}
    cache = CacheArguments.taken_from(given)
    assert cache == CacheArguments(on_miss="raise") and cache.cache_path == "cache"
    assert given == {"seed": 1}


def test_engine_arguments_take_what_is_left() -> None:
    given = {"max_model_len": 9, "head_dtype": "float32", "hf_overrides": {"x": 1}, "seed": 1}
    engine = EngineArguments.taken_from(given)
    assert given == {} and engine.other == {"seed": 1} and engine.hf_overrides == {"x": 1}
    arguments = engine.for_vllm()
    assert arguments["hf_overrides"] == {"x": 1, "head_dtype": "float32"}
    assert arguments["seed"] == 1 and arguments["max_model_len"] == 9
    assert not {"dtype", "head_dtype", "other"} & arguments.keys()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("on_mis", "on_miss"), ("readonly", "read_only"), ("prompt_dic", "prompt_dict")],
)
def test_a_misspelt_argument_is_no_engine_argument(
    make_encoder: Callable[..., Any], wrong: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{wrong} is .* Is {meant} meant"):
        make_encoder(**{wrong: "raise"})


def test_an_argument_of_the_other_wrapper_is_no_engine_argument(
    make_encoder: Callable[..., Any], make_cross_encoder: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=r"^query_prefix is no argument of this wrapper"):
        make_encoder(query_prefix="q: ")
    with pytest.raises(ConfigError, match=r"^prompt_dict is no argument of this wrapper"):
        make_cross_encoder(prompt_dict={})


def test_what_vllm_may_call_its_arguments_is_passed_on(make_encoder: Callable[..., Any]) -> None:
    for name in ("seed", "tokenizer_mode", "cpu_offload_gb", "of_the_future", "cache_dir"):
        assert make_encoder(**{name: 1})


def test_positional_arguments(tiny_model: Any, tmp_path: Any) -> None:
    encoder = VllmCrossEncoderWrapper(str(tiny_model), None, "q: ", "d: ", cache_path=None)
    assert (encoder.query_prefix, encoder.document_prefix) == ("q: ", "d: ")
    with pytest.raises(TypeError, match="positional"):
        VllmEncoderWrapper(str(tiny_model), None, True)  # type: ignore[misc]


def test_a_signature_with_fields() -> None:
    @takes(VectorArguments, PromptArguments)
    def function(first: int, *, last: int = 0, **kwargs: Any) -> None:
        """Nothing."""

    shown = inspect.signature(function).parameters
    assert [*shown] == ["first", "truncate_dim", *PromptArguments.names(), "last", "kwargs"]
    kinds = {parameter.kind for parameter in shown.values()}
    assert inspect.Parameter.POSITIONAL_ONLY not in kinds


def test_the_module_is_light() -> None:
    code = (
        "import embcache.encoders.arguments\n"
        "print([n for n in ('mteb', 'vllm', 'lance', 'lancedb', 'torch') if n in sys.modules])"
    )
    assert run_python(code) == "[]\n"
