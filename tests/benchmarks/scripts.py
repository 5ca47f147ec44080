"""Runs a benchmark as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def run_script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of `benchmarks/` in a folder, to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=600,
        check=False,
    )
