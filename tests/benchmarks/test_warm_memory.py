from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import run_script


@pytest.mark.slow
def test_it_measures_and_prints(tmp_path: Path) -> None:
    """A smoke test; with so few texts its figures mean nothing."""
    arguments = ("--texts", "500", "2000", "--rounds", "1")
    result = run_script("warm_memory.py", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in result.stdout.splitlines() if "MB" in line]
    assert "dry run" in rows[0] and "cold" in rows[1] and "warm" in rows[2]
