"""map, as a person types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.filesize import decimal

from embcache.store import Space
from tests.cli.test_keep import damage, fill, run
from tests.conftest import run_python
from tests.maps.test_project import clusters
from tests.spaces import make_rows
from tests.tools.test_merge import space_in


def draw(cache: Path, out: Path, *options: Any) -> str:
    result = run("map", "organization", out, "--cache", cache, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return str(result.stdout)


def refused(cache: Path, out: Path, *options: Any, code: int = 1) -> str:
    result = run("map", "organization", out, "--cache", cache, *options)
    assert result.exit_code == code and result.stdout == "" and not out.exists()
    return " ".join(str(result.stderr).split())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    clusters(tmp_path / "cache")
    return tmp_path / "cache"


def test_help_has_an_example() -> None:
    result = run("map", "--help")
    assert result.exit_code == 0 and "Example: embcache map " in result.output


@pytest.mark.parametrize("ending", ["html", "png"])
def test_a_drawing(cache: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    first, second = draw(cache, file, "--limit", "150").splitlines()
    start, size = f"{file}: 150 of 200 rows, coloured by prompt, ", file.stat().st_size
    assert first == f"{start}{decimal(size)}"
    assert second.startswith("The two axes show ") and "% of the variance (" in second
    assert draw(cache, file, "--overwrite", "--color", "n_tokens").count("by n_tokens") == 1


def test_a_table_names_the_command_that_opens_it(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "a b.parquet"
    lines = draw(cache, file, "--prompt", "cat: ", "--contains", "cat 1").splitlines()
    assert lines[0].startswith(f"{file}: 11 of 11 rows, ")
    assert lines[2] == f"Open it with: embedding-atlas '{file}' --x x --y y --text text"
    assert set(pq.read_table(file)["prompt"].to_pylist()) == {"cat: "}


def test_json(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    found = json.loads(draw(cache, file, "--json", "--limit", "20", "--seed", "3"))
    shares = found.pop("explained_variance_ratio")
    assert len(shares) == 2 and 0 < shares[1] < shares[0] < 1
    assert found == {
        "file": str(file), "points": 20, "rows_matched": 200, "damaged": 0, "method": "pca",
        "color": "prompt", "size_bytes": file.stat().st_size,
    }  # fmt: skip


def test_without_texts(tmp_path: Path) -> None:
    space: Space = space_in(tmp_path / "cache", store_text=False)
    space.add(make_rows(list("abcd")))
    lines = draw(tmp_path / "cache", tmp_path / "x.parquet").splitlines()
    assert lines[-1].endswith("x.parquet --x x --y y")
    message = refused(tmp_path / "cache", tmp_path / "x.png", "--color", "prompt")
    assert "Colour by one of prompt_type, task, n_tokens." in message
    assert "has no texts" in refused(tmp_path / "cache", tmp_path / "x.png", "--contains", "a")


def test_damaged_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(fill(tmp_path / "cache"))
    text = draw(tmp_path / "cache", tmp_path / "x.parquet")
    assert ": 149 of 150 rows, " in text and "; 1 damaged left out" in text
    assert "1 of 150 rows drawn" in caplog.text  # which logging prints on standard error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "tsne"], "'tsne' is not one of 'pca', 'umap'"),
        (["--color", "key"], "'key' is not one of 'prompt', 'prompt_type', 'task', 'n_tokens'"),
        (["--limit", "2"], "greater than or equal to 3"),
        (["--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_usage_errors(cache: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused(cache, tmp_path / "x.png", *options, code=2)


def test_what_cannot_work(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ends in none of .html, .png, .parquet" in refused(cache, tmp_path / "x.svg")
    assert "1 of 1 rows" in refused(cache, tmp_path / "x.png", "--contains", "dog 77")
    draw(cache, tmp_path / "x.parquet")
    result = run("map", "organization", tmp_path / "x.parquet", "--cache", cache)
    assert result.exit_code == 1 and "exists" in result.stderr and "--overwrite" in result.stderr
    monkeypatch.setitem(sys.modules, "umap", None)
    assert "pip install '.[map]'" in refused(cache, tmp_path / "x.png", "--method", "umap")


def test_the_command_line_imports_no_library_of_maps() -> None:
    names = "('plotly', 'matplotlib', 'umap', 'sklearn')"
    code = f"import embcache.cli.app; print([name for name in {names} if name in sys.modules])"
    assert run_python(code) == "[]\n"
