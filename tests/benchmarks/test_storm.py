from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.object_store import weed


def storm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "benchmarks" / "storm.py")
    return subprocess.run(
        [sys.executable, script, "--folder", str(folder), "--seed", "1", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RUST_BACKTRACE": "0"},
        timeout=550,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_storm_on_disk(tmp_path: Path) -> None:
    """Hours of others are in docs/reliability.md."""
    result = storm(tmp_path, "--minutes", "0.3", "--kills", "60")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"[1-9]\d* kills \| failures: none \| .*none lost, none wrong", result.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_storm_in_a_store(tmp_path: Path) -> None:
    """Eight processes, and the store itself, are killed; then the cache is merged and removed."""
    weed()  # skips where there is none
    result = storm(
        tmp_path, *["--store", "--minutes", "0.7", "--kills", "60", "--store-kills", "1"]
    )
    assert result.returncode == 0, result.stdout + result.stderr
    said = r"[1-9]\d* kills, 1 of the store \| failures: none \| .*none lost, none wrong"
    assert re.search(said, result.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_storm_on_two_hosts(tmp_path: Path) -> None:
    """Half of the processes on each of two mounts; where there is no sshfs, people run it."""
    if not shutil.which("sshfs") or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("sshfs is not installed, or FUSE not allowed")
    result = storm(tmp_path, "--two-hosts", "--minutes", "0.3", "--kills", "60")
    if "needs sshfs" in result.stderr or "CalledProcessError" in result.stderr:
        pytest.skip("sshfs does not mount here")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"14 processes, .* failures: none \| .*none lost, none wrong", result.stdout)
    assert not list(tmp_path.iterdir())
