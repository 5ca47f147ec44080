from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_it_measures_and_prints(tmp_path: Path) -> None:
    """A smoke test; with so few texts its figures mean nothing."""
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "warm_memory.py")),
            *("--texts", "500", "2000", "--rounds", "1"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in result.stdout.splitlines() if "MB" in line]
    assert "dry run" in rows[0] and "cold" in rows[1] and "warm" in rows[2]
