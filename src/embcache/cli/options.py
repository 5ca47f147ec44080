"""Options that several commands have: the same word, and the same meaning, in each of them.

`encoder_options` gives a command an option for each argument of the encoder, under its name in
Python; types, defaults and help are those of `encoders/arguments.py`.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import Field
from typing import Annotated, Any

import typer

from embcache.encoders.arguments import (
    CacheArguments,
    EngineArguments,
    PromptArguments,
    VectorArguments,
)
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION
from embcache.store import Location

Command = Callable[..., None]

_FIELDS: dict[str, Field[Any]] = {
    field.name: field
    for kind in (EngineArguments, PromptArguments, CacheArguments, VectorArguments)
    for field in kind.fields()
}
_NO_ENGINE_ARGUMENTS = {"model", "revision", "make_engine", *_FIELDS} - {*EngineArguments.names()}
# What a shell hands on as two characters, and a person means as one.
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r"}
_ESCAPE = re.compile(r"\\[ntr]")
_IN_BASH = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}  # in $'...'


def store_options(pairs: list[str] | None) -> dict[str, str] | None:
    """What `--storage-option` came to; its values are in no message, since they may be secrets.

    Args:
        pairs: `NAME=VALUE`, each.

    Returns:
        Values by name; None where no option was given.

    Raises:
        typer.BadParameter: One is no such pair, or a name is given twice.
    """
    options: dict[str, str] = {}
    for number, pair in enumerate(pairs or (), 1):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(
                f"--storage-option number {number} is no NAME=VALUE (it is not shown: it may be a "
                "secret). Write aws_region=eu-west-1, say."
            )
        if name in options:
            raise typer.BadParameter(f"--storage-option {name} is given twice. Give it once.")
        options[name] = value
    return options or None


def location_of(cache: str, pairs: list[str] | None, argument: str = "cache") -> Location:
    """Where a cache is, with what its store needs to be opened.

    Args:
        cache: A directory or a URL.
        pairs: Of `--storage-option`.
        argument: What errors call `cache`.

    Raises:
        typer.BadParameter: A pair is none.
        ConfigError: It is no place of a cache.
    """
    return Location.of(cache, store_options(pairs), argument=argument)


def parse_json(text: str) -> Any:
    """The value that an option's text is JSON of.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: no JSON ({error}).") from error


def json_object(text: str) -> dict[str, Any]:
    """The dict that an option's text is JSON of.

    Raises:
        typer.BadParameter: It is none.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise typer.BadParameter(f'{text}: give a JSON object, {{"name": "value"}}, say.')
    return value


def prompts(text: str) -> Any:
    """`prompt_dict` of an encoder: "registered" as it is, else the dict that the text is JSON of.

    Raises:
        typer.BadParameter: It is neither.
    """
    return text if text == "registered" else json_object(text)


def typed_text(text: str) -> str:
    r"""A prompt, a template or a text, as it was typed in a shell.

    A shell hands `\n` on as two characters. They are not taken as they are, since a line break is
    nearly always meant, and a text that differs in one character is another text.

    Returns:
        The text; of a JSON string (in double quotes) that has such characters, its value.

    Raises:
        typer.BadParameter: It has `\n`, `\t` or `\r` as two characters and is no JSON string.
    """
    found = _ESCAPE.search(text)
    if found is None:
        return text
    if len(text) > 1 and text[0] == text[-1] == '"':
        return str(parse_json(text))
    meaning = _ESCAPE.sub(lambda escape: _ESCAPES[escape[0]], text)
    bash = "".join(_IN_BASH.get(character, character) for character in meaning)
    raise typer.BadParameter(
        f"{text} has the two characters {found[0]}, which a shell hands on as they are. Write "
        f"$'{bash}' (bash, zsh), or JSON: {_quoted_json(meaning)}. If the two characters are "
        f"meant: {_quoted_json(text)}."
    )


def _quoted_json(text: str) -> str:
    return shlex.quote(json.dumps(text, ensure_ascii=False))


def prompt_option(help_: str, name: str = "--prompt") -> Any:
    """An option that takes a prompt, as it stands in front of texts.

    Args:
        help_: Which texts those are.
        name: `--prompt`, or `--query-prefix` and `--document-prefix` for the two of a pair.
    """
    return typer.Option(name, metavar="PROMPT", help=help_, show_default=False, parser=typed_text)


Names = list[str] | None

DEFAULT_CACHE = "cache"

CacheOption = Annotated[
    str, typer.Option("--cache", metavar="CACHE", help="The cache that SPACE is in.")
]
AddToOption = Annotated[
    str, typer.Option("--cache", metavar="CACHE", help="The cache to add to; made if need be.")
]
StorageOptions = Annotated[
    Names,
    typer.Option(
        "--storage-option",
        metavar="NAME=VALUE",
        help="What the store of a URL needs to be opened; again for more. Not given: the "
        "environment's and the machine's usual credentials.",
        show_default=False,
    ),
]
SpaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="Part of a space's name (of the model, dtype or fingerprint), or its folder or URL, "
        "or a cache that holds one space.",
        show_default=False,
    ),
]
SpacesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPACE",
        help="Parts of spaces' names, or their folders or URLs, or caches that hold one; all of "
        "the cache if none is named.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PromptFilter = Annotated[
    str | None, prompt_option("Only rows with this prompt in front of the text.")
]
ContainsFilter = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Only rows with this in their text.",
        show_default=False,
        parser=typed_text,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub name or directory.")]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model.", show_default=False)
]
CacheDirectory = Annotated[
    str, typer.Option("--cache", metavar="CACHE", help="Directory or URL of the cache.")
]
TaskOption = Annotated[
    Names, typer.Option("--task", "-t", help="mteb task, or module:Class; again for more.")
]
BenchmarkOption = Annotated[Names, typer.Option(help="All tasks of an mteb benchmark.")]

_OTHERS: dict[str, tuple[Any, str]] = {
    "lora_request": (str | None, "PATH"),
    "engine_arg": (Names, "NAME=JSON"),
}
_HELPS = {field.name: field.metadata["doc"] for field in _FIELDS.values()} | {
    "lora_request": "LoRA adapter that is applied to every text: directory or hub name.",
    "engine_arg": "Any other argument of vLLM's engine: quantization='\"fp8\"'.",
}
_PARSED: dict[str, tuple[Callable[[str], Any], str]] = {
    "hf_overrides": (json_object, "JSON"),
    "pooler_config": (json_object, "JSON"),
    "prompt_dict": (prompts, "registered|JSON"),
    "instruction_template": (typed_text, "TEMPLATE"),
}
"""Arguments that are no plain values: what reads one, and what its help calls it."""
_LISTS = {"upstream": "CACHE"}
"""Arguments that may be given again for more, and what their help calls one."""


_SHORTER = {"prompt_dict": ("--prompt-dict", "--prompts")}  # what people type at first


def encoder_options(
    *names: str,
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """Give a command options for arguments of the encoder, beside those that it has itself.

    The command gets them as one dict, its parameter `encoder`: what `VllmEncoderWrapper` is to be
    called with, under the names that it has there. `--lora-request`, and `--engine-arg` for what
    has no option of its own, belong to them.

    Args:
        *names: Fields of the classes in `encoders/arguments.py`, in the order of the help.
        defaults: Defaults that differ from the fields', by name.
        helps: What is said of an option in place of its field's line, by name.
    """
    defaults = defaults or {}
    helps = {**_HELPS, **(helps or {})}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.name != "encoder"]
        options = [
            _option(name, defaults.get(name, _FIELDS[name].default), helps[name]) for name in names
        ]
        others = [
            _parameter(name, kind, None, help=helps[name], metavar=metavar)
            for name, (kind, metavar) in _OTHERS.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in names}
            if chosen.get("gpu_memory_utilization", 0.0) is None:
                del chosen["gpu_memory_utilization"]
            if adapter := given.pop("lora_request"):
                chosen["lora_request"] = adapter
            chosen |= _engine_arguments(given.pop("engine_arg") or [], names)
            command(**given, encoder=chosen)

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer reads
            parameters=[*own, *options, *others]
        )
        return run

    return decorate


def _option(name: str, default: Any, help_: str) -> inspect.Parameter:
    """One argument of the encoder as typer takes it."""
    if name in _PARSED:
        parser, metavar = _PARSED[name]
        return _parameter(name, Any, default, help=help_, parser=parser, metavar=metavar)
    if name in _LISTS:
        return _parameter(name, Names, default, help=help_, metavar=_LISTS[name])
    if default is MTEB_GPU_MEMORY_UTILIZATION:  # on CPU another one than a 0.9 that was typed
        return _parameter(name, float | None, None, help=help_)
    return _parameter(name, _FIELDS[name].type, default, help=help_)


def _parameter(name: str, kind: Any, default: Any, **settings: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(*_SHORTER.get(name, ()), **settings)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _engine_arguments(pairs: list[str], options: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of vLLM's engine that have no option of their own.

    Args:
        pairs: `NAME=JSON`, each.
        options: Names that have one.

    Raises:
        typer.BadParameter: One is no such pair, or has an option, or is no engine argument.
    """
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--engine-arg {pair}: give NAME=JSON, seed=1, say.")
        if name in (*options, "lora_request"):
            option = name.replace("_", "-")
            raise typer.BadParameter(f"--engine-arg {name}: it has an option, --{option}.")
        if name in _NO_ENGINE_ARGUMENTS:
            raise typer.BadParameter(f"--engine-arg {name}: that is no argument of the engine.")
        try:
            arguments[name] = parse_json(value)
        except typer.BadParameter as error:
            raise typer.BadParameter(
                f"--engine-arg {name}={error} A text needs quotes: {name}='\"text\"'."
            ) from error
    return arguments
