from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_some_damages_are_mended(tmp_path: Path) -> None:
    """Thousands of other seeds are in docs/reliability.md."""
    script = str(ROOT / "benchmarks" / "damage.py")
    result = subprocess.run(
        [sys.executable, script, "--trials", "12", "--seed", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "RUST_BACKTRACE": "0"},
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 damages | failures: 0 " in result.stdout
    assert not list(tmp_path.iterdir())
