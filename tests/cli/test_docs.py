from __future__ import annotations

import runpy

import pytest
import typer

from embcache.cli.app import app
from tests.conftest import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "update_cli_docs.py"))
PATHS = [*SCRIPT["command_paths"](typer.main.get_command(app))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path) or "embcache")
def test_the_docs_have_the_current_help(path: tuple[str, ...]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    block = f"## {' '.join(('embcache', *path))}\n\n```text\n{SCRIPT['help_text'](path)}\n```\n"
    assert block in page, "run scripts/update_cli_docs.py"


def test_the_docs_have_nothing_else() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == SCRIPT["render"](), "run scripts/update_cli_docs.py"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path) or "embcache")
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    text = SCRIPT["help_text"](path)
    assert "Example: embcache" in text.replace("\n", " ") and max(map(len, text.split("\n"))) <= 80


@pytest.mark.parametrize("path", [path for path in PATHS if path], ids=" ".join)
def test_every_command_can_print_json(path: tuple[str, ...]) -> None:
    assert "--json" in SCRIPT["help_text"](path)
