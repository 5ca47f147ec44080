"""The `warm` command with fake engines, for the tests of its options and of its sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from embcache.cli import warm as module
from tests.fakes import FakeEngine


@pytest.fixture
def run_warm(
    fake_engines: list[FakeEngine], tiny_model: Path, tmp_path: Path
) -> Callable[..., Result]:
    """Runs it into `cache`; what it raises, but its own exits, is raised."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(module.warm)

    def run(*arguments: Any, code: int = 0, **kwargs: Any) -> Result:
        model = ("--model", tiny_model, "--dtype", "float32", "--cache", tmp_path / "cache")
        result = CliRunner().invoke(app, [str(a) for a in (*model, *arguments)], **kwargs)
        unexpected = result.exception
        if unexpected is not None and not isinstance(unexpected, SystemExit):
            raise unexpected
        assert result.exit_code == code, result.output
        return result

    return run
