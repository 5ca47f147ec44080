from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_warm_part_runs_and_reports(tmp_path: Path) -> None:
    """A smoke test of the benchmark, which checks vectors itself; its figures mean nothing here."""
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "first_look.py"), "--quick"),
            *("--only", "warm", "--json", str(tmp_path / "r.json")),
            *("--markdown", str(tmp_path / "r.md")),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "CachedEmbeddingWrapper" in result.stdout
    assert "embcache" in (tmp_path / "r.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())
