"""Damaged bytes that end a process: the check goes on without them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embcache.cli.apart import check_apart
from embcache.errors import CacheError, ConfigError
from embcache.store import Space
from tests.spaces import folder, make_rows

Open = Callable[..., Space]


def make_deadly(space: Space) -> None:
    """A deletion file that says how much memory reading it takes: more than there is."""
    (path,) = (folder(space) / "_deletions").iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw[:-26] + struct.pack("<q", 2**58) + raw[-18:])


def test_a_file_that_ends_the_process(open_space: Open, tmp_path: Path) -> None:
    space, rows = open_space(), make_rows([f"text {i}" for i in range(100)])
    space.add(rows)
    space.add(make_rows(["another"]))
    space.drop(rows.keys[:3])
    make_deadly(space)
    code = f"import lance; lance.dataset({str(folder(space))!r}).to_table()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -6
    (found,) = check_apart(None, tmp_path / "cache", fix=False)
    assert not found.ok and "ends the process that reads it" in found.text
    (fixed,) = check_apart([str(folder(space))], tmp_path / "cache", fix=True)
    assert fixed.ok and fixed.fields["repair"]["recovered"] == 100
    (again,) = check_apart(None, tmp_path / "cache", fix=False)
    assert again.ok and again.fields["rows"] == 101


def test_errors_are_the_librarys(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        list(check_apart(None, tmp_path / "none", fix=False))
    with pytest.raises(ConfigError, match="There is no space in"):
        list(check_apart(["x"], tmp_path, fix=False))


def test_modules_of_the_working_directory_are_not_imported(
    open_space: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a cache from someone else."""
    open_space().add(make_rows(["a"]))
    (tmp_path / "lance.py").write_text("raise SystemExit(77)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() == str(tmp_path)
    (found,) = check_apart(None, Path("cache"), fix=False)
    assert found.ok and found.fields["rows"] == 1
