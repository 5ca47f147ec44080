from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from embcache import VllmEncoderWrapper
from embcache.cli.app import app
from embcache.identity.keys import pair_keys
from embcache.store import SCORES, Database, Rows
from tests.conftest import encode
from tests.fakes import FakeEngine

TEXTS = ["the quick fox", "a [bold] dog", "多语言\ntext\x1b[31m"]
PROMPTS = {"query": "query: ", "document": "passage: "}
Run = Callable[..., Result]


@pytest.fixture
def cache(make_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path) -> Path:
    encode(make_encoder(prompt_dict=PROMPTS), TEXTS, prompt_type="document")
    return tmp_path / "cache"


@pytest.fixture
def run(cache: Path) -> Run:
    """Run `search` in the cache's only space."""

    def run_(*arguments: str, code: int = 0) -> Result:
        command = ["search", "tiny-model", *arguments, "--cache", str(cache)]
        result = CliRunner().invoke(app, command, prog_name="embcache")
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run_


def rows(cache: Path) -> int:
    (info,) = Database(cache, writable=False).spaces()
    space = Database(cache, writable=False).space(info.metadata.identity, "", "")
    return len(space.refresh())


def test_near_a_cached_text(run: Run, fake_engines: list[FakeEngine]) -> None:
    text = run(TEXTS[0], "--prompt", "passage: ").stdout
    assert "a [bold] dog" in text and TEXTS[0] not in text and "\x1b" not in text
    out = run(TEXTS[0], "--prompt", "passage: ", "-k", "1", "--json").stdout
    (found,) = json.loads(out)
    assert -1 <= found["cosine"] <= 1 and found["prompt"] == "passage: "
    assert not any(engine.starts for engine in fake_engines[1:])


def test_near_a_new_text(run: Run, cache: Path, fake_engines: list[FakeEngine]) -> None:
    """What is embedded is prompt + text; nothing is written."""
    result = run("the quick fox", "--prompt", "passage:x", "-k", "3")
    assert len(result.stdout.splitlines()) == 3
    assert "not cached: starting vLLM to embed it with prompt 'passage:x'" in result.stderr
    assert fake_engines[-1].encoded == ["passage:xthe quick fox"] and rows(cache) == 3
    # The same input, cut elsewhere into prompt and text: the same vector.
    (found,) = json.loads(run("assage: a [bold] dog", "--prompt", "p", "-k", "1", "--json").stdout)
    assert found["text"] == "a [bold] dog" and found["cosine"] == pytest.approx(1)


def test_a_new_text_without_a_prompt_names_the_prompts_of_the_space(run: Run) -> None:
    assert "texts of this space have 'passage: ' (3): name one" in run("something new").stderr
    assert "texts of this space" not in run("something new", "--prompt", "").stderr


def test_a_text_that_is_cached_with_another_prompt(run: Run) -> None:
    message = run(TEXTS[0], code=1).stderr
    assert "with prompt '', but with: 'passage: '" in message and "add --fts" in message


def test_on_miss_raise(run: Run, fake_engines: list[FakeEngine]) -> None:
    message = run("something new", "--on-miss", "raise", code=1).stderr
    assert "Without --on-miss raise it is embedded first" in message
    assert not any(engine.starts for engine in fake_engines[1:])


def test_words(run: Run) -> None:
    assert run("QUICK", "--fts").stdout.endswith("  the quick fox\n")
    (found,) = json.loads(run("dog", "--fts", "--json").stdout)
    assert found["text"] == TEXTS[1] and found["bm25"] > 0
    assert "has these words" in run("elephant", "--fts").stderr


def test_a_space_of_scores(tmp_path: Path, run: Run, cache: Path) -> None:
    (info,) = Database(cache, writable=False).spaces()
    identity = info.metadata.identity.with_arguments({"convert": "classify"})
    scores = Database(cache, writable=True).space(identity, "reranker", "v", layout=SCORES)
    columns: dict[str, Any] = {"query": "q", "document": ["d"]}
    columns |= {"query_prefix": "", "document_prefix": ""}
    keys = pair_keys(identity.to_bytes(), ("", ""), ["q"], ["d"])
    scores.add(Rows(keys, np.ones((1, 1), np.float32), columns))
    result = CliRunner().invoke(app, ["search", "reranker", "q", "--cache", str(cache)])
    assert result.exit_code == 1 and "holds scores" in result.stderr
