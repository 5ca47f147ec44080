"""`search`: the cached texts that are nearest to a text, or that have some words."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from embcache.cli.output import one_line, print_json, print_note, prompt_counts
from embcache.cli.spaces import (
    DEFAULT_CACHE,
    CacheOption,
    JsonOption,
    PromptOption,
    SpaceArgument,
    find_space,
)
from embcache.errors import ConfigError, MissingTextsError, quoted
from embcache.identity.keys import Keys
from embcache.store import SpaceInfo
from embcache.tools.describe import describe
from embcache.tools.search import find_text, nearest, prompts_of, search_words


def register(app: typer.Typer) -> None:
    """Add `search`."""
    app.command(epilog='Example: embcache search e5-small "capital" --fts -k 5')(search)


def search(
    space: SpaceArgument,
    words: Annotated[str, typer.Argument(help="A text; with --fts, any words.")],
    fts: Annotated[
        bool, typer.Option("--fts", help="Search for words in the texts, as they are spelt.")
    ] = False,
    count: Annotated[int, typer.Option("-k", min=1, help="How many texts to print.")] = 10,
    prompt: PromptOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the model is now, to embed a text that is not cached."),
    ] = None,
    cached_only: Annotated[
        bool, typer.Option("--cached-only", help="Never start an engine: fail on a new text.")
    ] = False,
    cache: CacheOption = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Search for the cached texts that are nearest to a text, or that have some words.

    A text that is not cached is embedded first, by vLLM; nothing is written.
    """
    info = find_space(space, cache)
    if fts:
        if len(prompt or []) > 1:
            raise ConfigError("--fts takes one --prompt: that of the texts to search.")
        matches = search_words(info, words, count, prompt[0] if prompt else None)
        score = "bm25"
    else:
        vector, own = _embedded(info, words, prompt or [], model, cached_only)
        matches, score = nearest(info, vector, count, own), "cosine"
    if as_json:
        print_json([{"text": m.text, "prompt": m.prompt, score: m.score} for m in matches])
        return
    for match in matches:
        shown = "(text not stored)" if match.text is None else one_line(match.text, 96)
        print(f"{match.score:9.6f}  {shown}")
    if not matches:
        print_note(f"No text of {info.path} {'has these words' if fts else 'is near it'}.")


def _embedded(
    info: SpaceInfo, text: str, prompts: list[str], model: str | None, cached_only: bool
) -> tuple[npt.NDArray[np.float32], Keys | None]:
    """The vector of a text, and its key if it is cached.

    Raises:
        MissingTextsError: It is cached with another prompt, and none was named; or it is not
            cached, and nothing may be embedded.
    """
    try:
        found = find_text(info, [text], prompts)
    except MissingTextsError as error:
        if cached_only or (not prompts and prompts_of(info, [text])):
            embed = " Without --cached-only it is embedded first." if cached_only else ""
            message = f"{error}{embed} To search for words in the texts, add --fts."
            raise MissingTextsError(message, error.missing) from error
    else:
        return found.value, found.key
    from embcache.encoders.space_encoder import embed_as

    prompt = prompts[0] if prompts else ""
    print_note(_not_cached(info, prompt, named=bool(prompts)))
    return embed_as(info, text, prompt, model), None


def _not_cached(info: SpaceInfo, prompt: str, *, named: bool) -> str:
    note = f"not cached: starting vLLM to embed it with prompt {quoted(prompt)}"
    counts = [] if named else describe(info).counts.get("prompt", [])
    if not any(one.value for one in counts):
        return note
    return f"{note}\ntexts of this space have {prompt_counts(counts)}: name one with --prompt"
