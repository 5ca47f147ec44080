from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.scripts import run_script


def measured(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """The tables of a quick run, which compares vectors itself; its figures mean nothing here."""
    written = ("--json", str(tmp_path / "r.json"), "--page", str(tmp_path / "docs" / "page.md"))
    result = run_script("bench.py", "--quick", *arguments, *written, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "round 1 of 1" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["goals"] == []  # they are about the full size
    parts: list[dict[str, Any]] = report["parts"]
    pictures = tmp_path / "docs" / "pictures"
    assert len(list(pictures.glob("bench-*.svg"))) == len(parts)
    page = (tmp_path / "docs" / "page.md").read_text()
    assert all(f"### {part['name']}\n" in page for part in parts)
    for part in parts:
        for name, samples in part["contenders"].items():
            assert len(samples["seconds"]) == 1, name
    return parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "found"),
    [
        ("warm", ["warm"]),
        ("warm-large", ["warm-large", "tenth"]),
        ("evaluate", ["evaluate"]),
        ("tool", ["tool"]),
    ],
)
def test_a_part_without_an_engine(tmp_path: Path, only: str, found: list[str]) -> None:
    assert [part["name"] for part in measured(tmp_path, "--only", only)] == found


@pytest.mark.slow
def test_more_keys_than_are_made_are_simulated(tmp_path: Path) -> None:
    (part,) = measured(tmp_path, "--only", "scale", "--keys", "100000000")
    labels = [samples["label"] for samples in part["contenders"].values()]
    assert [label.endswith("simulated") for label in labels] == [False, False, True]


@pytest.mark.engine
def test_real_engines_compute_the_same(tmp_path: Path) -> None:
    parts = measured(tmp_path, "--only", "cold")
    assert {"cold-short", "cold-mixed", "cold-long"} <= {
        part["name"].removesuffix("-float32") for part in parts
    }


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    result = run_script("bench.py", "--only", "lukewarm", folder=tmp_path)
    assert result.returncode == 2
    assert "invalid choice: 'lukewarm'" in result.stderr
