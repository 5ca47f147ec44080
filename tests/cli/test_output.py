"""Names and texts of a cache control no terminal, whatever command shows them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embcache import CacheError
from embcache.cli.app import app
from embcache.cli.output import console, print_error, print_json, print_note, print_text
from embcache.errors import printable
from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from embcache.store import Database, Rows
from tests.conftest import ROOT

# Clear the screen, retitle the window, 8-bit CSI, carriage return, backspace, bell, DEL, an
# override of direction, an isolate, a line separator, an invisible tag, shift out.
EVIL = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\rd\be\x7ff\u202eg\u2066h\u2028i\U000e0041j\x0ek"
SEEN = (
    "\x1b",
    "\x9b",
    "\r",
    "\b",
    "\x07",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\U000e0041",
    "\x0e",
)


def harmless(text: str) -> bool:
    return not any(char in text for char in SEEN)


def test_what_controls_is_written_out_and_words_stay() -> None:
    assert harmless(printable(EVIL)) and printable(EVIL).startswith(
        r"a\x1b[2J\x1b]0;title\x07b\x9b"
    )
    words = (
        "naïve 東京\u3000の天気 مرحبا \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}\n\tline"
    )
    assert printable(words) == words
    assert printable("\ud800") == r"\ud800"


def test_errors_can_be_shown_anywhere() -> None:
    error = CacheError(f"{EVIL} is damaged")
    assert harmless(str(error)) and error.args == (f"{EVIL} is damaged",)


def test_every_way_to_print(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(EVIL)
    print_error(ValueError(EVIL))
    print_note(EVIL)
    print_text(EVIL)
    print_json({EVIL: [EVIL, Path(EVIL)]})
    console().print(EVIL)
    said = capsys.readouterr()
    assert harmless(said.out + said.err) and "a\\x1b[2J" in said.out and "a\\x1b[2J" in said.err


def test_json_says_the_same_to_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({EVIL: EVIL, "readable": "東京 é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {EVIL: EVIL, "readable": "東京 é"} and "東京 é" in out


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A cache whose model, revision, engine, arguments, texts, prompts and tasks are all evil."""
    identity = Identity(EVIL, EVIL, "float32", {EVIL: {EVIL: [EVIL]}}, engine=EVIL, truncation=EVIL)
    for name in ("cache", "other"):
        space = Database(tmp_path / name, writable=True).space(identity, f"{EVIL}/{EVIL}", EVIL)
        texts = [f"{i} {EVIL}" for i in range(8)]
        keys = text_keys(identity.to_bytes(), EVIL, texts)
        columns = {"text": texts, "prompt": EVIL, "prompt_type": EVIL, "task": EVIL}
        vectors = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        space.add(Rows(keys, vectors, columns))
    return tmp_path


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "ls": lambda cache: ["ls", cache],
    "ls --json": lambda cache: ["ls", cache, "--json"],
    "show": lambda cache: ["show", cache],
    "show --json": lambda cache: ["show", cache, "--json"],
    "get": lambda cache: ["get", cache, f"1 {EVIL}", "--prompt", EVIL],
    "get --json": lambda cache: ["get", cache, f"1 {EVIL}", "--prompt", EVIL, "--json"],
    "get, missing": lambda cache: ["get", cache, f"1 {EVIL}"],
    "search": lambda cache: ["search", cache, f"1 {EVIL}", "--prompt", EVIL],
    "search, missing": lambda cache: ["search", cache, EVIL, "--on-miss", "raise"],
    "search --fts": lambda cache: ["search", cache, "title", "--fts"],
    "check": lambda cache: ["check", cache],
    "compact": lambda cache: ["compact", cache],
    "merge": lambda cache: ["merge", cache, "--cache", f"{cache}/../target"],
    "export, no row": lambda cache: ["export", cache, f"{cache}/../x.npy", "--prompt", "none"],
    "rm, unasked": lambda cache: ["rm", cache],
    "rm": lambda cache: ["rm", cache, "--yes"],
    "compare": lambda cache: ["compare", cache, f"{cache}/../other"],
    "not found": lambda cache: ["show", EVIL, "--cache", cache],
    "map": lambda cache: ["map", cache, f"{cache}/../x.html"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_over_a_hostile_cache(name: str, hostile: Path) -> None:
    result = CliRunner().invoke(app, COMMANDS[name](str(hostile / "cache")))
    assert not isinstance(result.exception, Exception), repr(result.exception)
    assert result.output and harmless(result.output), result.output


def test_a_hostile_place_is_harmless_too(hostile: Path) -> None:
    """The folder of a cache can be called anything; a process of its own, with its log lines."""
    place = hostile / EVIL.replace("/", "")
    (hostile / "cache").rename(place)
    for name in ("ls", "check", "show"):
        result = subprocess.run(
            [sys.executable, "-m", "embcache", name, str(place)],
            capture_output=True,
            env={**os.environ, "COLUMNS": "200"},
            cwd=ROOT,
            check=False,
        )
        output = (result.stdout + result.stderr).decode()
        assert output and harmless(output), output  # Lance refuses some characters in paths


def test_log_lines(hostile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Warnings go to standard error where nobody has set up logging, as on the command line."""
    from embcache.cli import output

    monkeypatch.setattr(sys, "argv", ["embcache", "--version"])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))
    with pytest.raises(SystemExit):
        output.run(app)
    assert logging.lastResort is not None
    record = logging.makeLogRecord({"msg": "a table %s", "args": (EVIL,)})
    logging.lastResort.handle(record)
    err = capsys.readouterr().err
    assert harmless(err) and r"a table a\x1b[2J" in err
