from __future__ import annotations

import inspect
import subprocess
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from embcache import VllmEncoderWrapper
from embcache.cli import evaluate, warm
from embcache.cli.app import app
from embcache.cli.options import encoder_options, typed_text
from embcache.encoders.arguments import EngineArguments, PromptArguments

TEMPLATE = "Instruct: {instruction}\nQuery: "


def run(names: tuple[str, ...], *arguments: str, **kwargs: Any) -> tuple[Result, dict[str, Any]]:
    """What a command with these options gets as `encoder`."""
    got: dict[str, Any] = {}

    @encoder_options(*names, **kwargs)
    def command(encoder: dict[str, Any], own: str = "") -> None:
        got.update(encoder, own=own)

    alone = typer.Typer(rich_markup_mode=None)
    alone.command()(command)
    return CliRunner().invoke(alone, arguments), got


def encoder(*arguments: str) -> dict[str, Any]:
    """What the encoder is called with, of all its options."""
    names = (*EngineArguments.names(), *PromptArguments.names(), "on_miss", "truncate_dim")
    result, got = run(names, *arguments)
    assert result.exit_code == 0, result.output
    return got


def refused(*arguments: str) -> str:
    names = (*EngineArguments.names(), *PromptArguments.names())
    result, _ = run(names, *arguments)
    assert result.exit_code == 2
    return result.stderr


def test_what_is_not_given_has_the_defaults_of_python() -> None:
    parameters = inspect.signature(VllmEncoderWrapper).parameters
    given = encoder()
    assert given.pop("own") == "" and "gpu_memory_utilization" not in given
    assert given == {name: parameters[name].default for name in given}


def test_every_kind_of_value() -> None:
    given = encoder(
        *("--dtype", "half", "--max-model-len", "128", "--no-trust-remote-code", "--own", "x"),
        *("--hf-overrides", '{"a": 1}', "--pooler-config", '{"pooling_type": "CLS"}'),
        *("--gpu-memory-utilization", "0.9", "--enable-prefix-caching", "--use-instructions"),
        *("--prompt-dict", '{"query": "q:\\n"}', "--instruction-template", TEMPLATE),
        *("--on-miss", "raise", "--truncate-dim", "3", "--lora-request", "adapter"),
        *("--engine-arg", "seed=1", "--engine-arg", 'quantization="fp8"'),
    )
    expected = {
        "dtype": "half", "max_model_len": 128, "trust_remote_code": False, "own": "x",
        "hf_overrides": {"a": 1}, "pooler_config": {"pooling_type": "CLS"},
        "gpu_memory_utilization": 0.9, "enable_prefix_caching": True, "use_instructions": True,
        "prompt_dict": {"query": "q:\n"}, "instruction_template": TEMPLATE, "on_miss": "raise",
        "truncate_dim": 3, "lora_request": "adapter", "seed": 1, "quantization": "fp8",
    }  # fmt: skip
    assert expected.items() <= given.items()
    assert encoder("--prompt-dict", "registered")["prompt_dict"] == "registered"


def test_defaults_and_helps_of_a_command() -> None:
    names = ("enforce_eager",)
    result, got = run(names, defaults={"enforce_eager": True})
    assert got["enforce_eager"] is True
    result, _ = run(names, "--help", helps={"enforce_eager": "Said otherwise."})
    assert "Said otherwise." in result.stdout and "--dtype" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "floa32"), "'floa32' is not one of 'half', 'float16'"),
        (("--hf-overrides", "{"), "'--hf-overrides': {: no JSON"),
        (("--pooler-config", "[1]"), "'--pooler-config': [1]: give a JSON object"),
        (("--prompt-dict", "query: "), "'--prompt-dict' / '--prompts': query: : no JSON"),
        (("--engine-arg", "seed"), "--engine-arg seed: give NAME=JSON"),
        (("--engine-arg", "seed=one"), "--engine-arg seed=one: no JSON"),
        (("--engine-arg", "seed=one"), "A text needs quotes: seed='\"text\"'"),
        (("--engine-arg", 'max_model_len="1"'), "it has an option, --max-model-len"),
        (("--engine-arg", 'lora_request="x"'), "it has an option, --lora-request"),
        (("--engine-arg", 'cache_path="x"'), "cache_path: that is no argument of the engine"),
    ],
)
def test_wrong_values(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


@pytest.mark.parametrize("text", ["", "query: ", "a\nb", '"', '"quoted"', "C:\\home", "\\alpha"])
def test_a_typed_text_is_as_it_was_typed(text: str) -> None:
    assert typed_text(text) == text


def test_an_escape_is_refused_with_the_ways_to_write_it() -> None:
    """Each of them, in a real shell, gives what it is said to give."""
    for typed, meant in (
        (r"Instruct: {instruction}\nQuery: ", TEMPLATE),
        (r"it's \t and \alpha \"x\"", 'it\'s \t and \\alpha \\"x\\"'),
        (r"a\r\nb", "a\r\nb"),
    ):
        with pytest.raises(typer.BadParameter, match="has the two characters") as caught:
            typed_text(typed)
        message = str(caught.value)
        bash = message.split(" Write ")[1].split(" (bash, zsh)", maxsplit=1)[0]
        json = message.split("or JSON: ")[1].split(". If the two characters", maxsplit=1)[0]
        literal = message.split("are meant: ")[1].removesuffix(".")
        found = [shell(each) for each in (bash, json, literal)]
        assert [typed_text(each) for each in found] == [meant, meant, typed]


def shell(word: str) -> str:
    """What bash makes of a word."""
    command = ["bash", "-c", f"printf %s {word}"]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def test_a_json_string_that_is_none() -> None:
    with pytest.raises(typer.BadParameter, match="no JSON"):
        typed_text(r'"a\n"b"')


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "space", r"a\nb"),
        ("get", "space", "a", "--prompt", r"q:\n"),
        ("get", "space", "a", "b", "--query-prefix", r"q:\n"),
        ("get", "space", "a", "b", "--document-prefix", r"q:\n"),
        ("search", "space", r"a\nb"),
        ("search", "space", "a", "--prompt", r"q:\n"),
        ("export", "space", "x.parquet", "--prompt", r"q:\n"),
        ("export", "space", "x.parquet", "--contains", r"a\nb"),
        ("map", "space", "x.png", "--prompt", r"q:\n"),
        ("map", "space", "x.png", "--contains", r"a\nb"),
        ("import", "folder", "--prompt", r"q:\n"),
        ("warm", "-m", "model", "--prompt", r"q:\n"),
        ("warm", "-m", "model", "--instruction-template", r"{instruction}\n"),
        ("eval", "-m", "model", "--instruction-template", r"{instruction}\n"),
    ],
    ids=" ".join,
)
def test_no_command_takes_an_escape_for_two_characters(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and r"has the two characters \n" in result.stderr


def test_every_argument_of_the_encoder_is_an_option_of_eval_and_warm() -> None:
    """But of warm, those that make no sense for it."""
    arguments = {*inspect.signature(VllmEncoderWrapper).parameters} - {"kwargs", "make_engine"}
    arguments = (arguments - {"cache_path"}) | {"cache", "lora_request", "engine_arg"}
    without = {"on_miss", "read_only", "on_write_error", "truncate_dim"}
    assert arguments <= {*inspect.signature(evaluate.evaluate).parameters}
    assert {*inspect.signature(warm.warm).parameters} & (arguments | without) == arguments - without
