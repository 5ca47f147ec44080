from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CPU = {"processor": "Abacus, 2 cores", "python": "3.11"}
GPU = {**CPU, "GPU": "Loom"}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The benchmark's modules, by name."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return {name: importlib.import_module(name) for name in ("_report", "_page", "_turns", "bench")}


@pytest.fixture
def part(modules: dict[str, Any]) -> Any:
    """embcache, a faster rival, a slower one, a floor, and one without samples."""
    samples = modules["_report"].Samples
    return modules["_report"].Part(
        "warm",
        "Warm: three rounds",
        100,
        {
            "embcache": samples("embcache", True, [1.0, 2.0, 1.0]),
            "quick": samples("Quick", True, [0.5, 0.5, 0.6]),
            "slow": samples("Slow", True, [3.0, 3.0, 4.0]),
            "floor": samples("the floor", False, [0.1, 0.1, 0.1]),
            "none": samples("None", True),
        },
    )


def goals(modules: dict[str, Any], part: Any) -> list[Any]:
    goal = modules["_report"].ratio_goal
    return [
        goal(part, "5 times the floor", "embcache", "floor", 5.0, most=True),
        goal(part, "faster than Slow", "slow", "embcache", 1.0, most=False),
    ]


def test_goals_are_met_or_missed_by_medians(modules: dict[str, Any], part: Any) -> None:
    missed, met = goals(modules, part)
    assert (missed.met, round(missed.found, 6)) == (False, 10.0)
    assert (met.met, met.found, met.spread) == (True, 3.0, (1.5, 4.0))
    assert str(missed).startswith("MISSED  warm: 5 times the floor; found 10.00 (10.00 to 20.00)")


def test_embcache_says_to_whom_it_loses(modules: dict[str, Any], part: Any) -> None:
    assert part.verdict() == "embcache loses here to Quick (0.50 of embcache's time)."
    del part.contenders["quick"]
    assert part.verdict() == "embcache is faster here than Slow."
    del part.contenders["slow"]
    assert part.verdict() == ""


def test_the_page_has_what_was_found(tmp_path: Path, modules: dict[str, Any], part: Any) -> None:
    path = tmp_path / "docs" / "benchmarks.md"
    modules["_page"].write_page(path, [part], goals(modules, part), CPU, "make bench")
    page = path.read_text()
    assert "`make bench` on: processor Abacus, 2 cores, python 3.11." in page
    assert "1 of 2 goals is missed: warm, 5 times the floor." in page
    assert "| warm | faster than Slow | 3.00 (1.50 to 4.00) | yes |" in page
    assert "| Quick | 0.50 | 500 ms | 500 ms to 600 ms | 200 |  |" in page
    assert "embcache loses here to Quick" in page
    assert "(pictures/bench-cpu-warm.svg)" in page
    assert "these rows are open" in page
    assert "## What was tried" in page


def test_what_is_written_by_hand_stays(tmp_path: Path, modules: dict[str, Any], part: Any) -> None:
    path = tmp_path / "benchmarks.md"
    write = modules["_page"].write_page
    write(path, [part], [], CPU, "make bench")
    first = path.read_text()
    path.write_text(first.replace("# Benchmarks", "# Mine") + "\nA note.\n")
    part.contenders["slow"].label = "Slower"
    write(path, [part], [], CPU, "make bench")
    again = path.read_text()
    assert again == (
        first.replace("# Benchmarks", "# Mine").replace("| Slow ", "| Slower ") + "\nA note.\n"
    )


def test_a_machine_with_a_gpu_fills_rows_of_its_own(
    tmp_path: Path, modules: dict[str, Any], part: Any
) -> None:
    path = tmp_path / "benchmarks.md"
    modules["_page"].write_page(path, [part], [], CPU, "make bench")
    modules["_page"].write_page(path, [part], [], GPU, "make bench ARGS='--only cold'")
    page = path.read_text()
    assert "open" not in page
    assert "`make bench ARGS='--only cold'` on: processor Abacus, 2 cores" in page
    assert "(pictures/bench-cpu-warm.svg)" in page
    assert "(pictures/bench-gpu-warm.svg)" in page


def test_a_page_without_markers_is_left_alone(
    tmp_path: Path, modules: dict[str, Any], part: Any
) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("# My own\n")
    page = modules["_page"]
    with pytest.raises(page.PageError, match=r"has no lines .*move the page away"):
        page.write_page(path, [part], [], CPU, "make bench")
    assert path.read_text() == "# My own\n"


def test_the_same_samples_draw_the_same_chart(
    tmp_path: Path, modules: dict[str, Any], part: Any
) -> None:
    for name in ("a", "b"):
        modules["_page"].write_page(tmp_path / name / "p.md", [part], [], CPU, "make bench")
    first, second = (tmp_path / name / "pictures" / "bench-cpu-warm.svg" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert b"Slow" in first.read_bytes()


def test_what_is_not_installed_is_left_out(modules: dict[str, Any]) -> None:
    peer = modules["_turns"].Peer
    peers = {
        "embcache": peer("embcache", "a:b", package="numpy"),
        "no": peer("No", "a:c", package="no-such-package"),
    }
    part = modules["_turns"].make_part("warm", "Warm", 1, peers)
    assert part.notes == ["No: not installed: pip install no-such-package"]
    assert list(part.contenders) == list(peers) == ["embcache"]


def test_the_command_names_no_files(modules: dict[str, Any]) -> None:
    given = ["--only", "warm", "--json", "/a/b", "--page=c.md", "--rounds", "3", "--page", "d"]
    assert modules["bench"]._without_files(given) == ["--only", "warm", "--rounds", "3"]
