"""export and import, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embcache.identity.identity import Identity
from embcache.identity.keys import text_keys
from tests.cli.test_maintain import run
from tests.spaces import folder
from tests.tools.test_export import filled
from tests.tools.test_import import numpy_cache
from tests.tools.test_merge import space_in


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: embcache {command} " in result.output


def test_out_of_one_cache_and_into_another(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    file = tmp_path / "x.parquet"
    exported = run("export", "organization", file, "--cache", tmp_path / "a")
    assert exported.exit_code == 0 and f"{file}: 63 rows" in exported.output
    imported = run("import", file, "--cache", tmp_path / "b")
    assert imported.exit_code == 0 and "63 of 63 rows added" in imported.output
    assert len(space_in(tmp_path / "b").refresh()) == 63


def test_export_options(tmp_path: Path) -> None:
    path = folder(filled(tmp_path / "a"))
    file = tmp_path / "x.parquet"
    result = run("export", path, file, "--prompt", "p: ", "--contains", "text 1")
    assert result.exit_code == 0 and len(pq.read_table(file)) == 11
    refused = run("export", path, file)
    assert refused.exit_code == 1 and "exists" in refused.stderr and "--overwrite" in refused.stderr
    assert run("export", path, file, "--overwrite", "--dtype", "float16").exit_code == 0
    refused = run("import", file, "--cache", tmp_path / "b")
    assert refused.exit_code == 1 and "float16 values" in refused.stderr


def test_an_export_of_nothing_names_the_prompts(tmp_path: Path) -> None:
    path = folder(filled(tmp_path / "a"))
    result = run("export", path, tmp_path / "x.parquet", "--prompt", "p")
    assert result.exit_code == 0 and "0 rows" in result.stdout
    assert "no row fits --prompt and --contains; prompts: 'p: ' (" in result.stderr


@pytest.mark.parametrize("kind", ["txt", "jsonl", "objects"])
def test_numpy_cache(tmp_path: Path, kind: str) -> None:
    texts = ["a", "b b", "c"]
    vectors = numpy_cache(tmp_path / "numpy", texts)
    file = tmp_path / ("texts.txt" if kind == "txt" else "texts.jsonl")
    lines = texts if kind == "txt" else [json.dumps(t) for t in texts]
    if kind == "objects":
        lines = [json.dumps({"text": text, "id": 1}) for text in texts]
    file.write_text("\n".join(lines) + "\n")
    model = ["--model", "x/y", "--revision", "1", "--dtype", "float", "--prompt", "q: "]
    source = [tmp_path / "numpy", "--cache", tmp_path / "b", "--texts", file]
    result = run("import", *source, *model)
    assert result.exit_code == 0 and "3 of 3 rows added" in result.output
    identity = Identity("x/y", "1", "float32")
    space, keys = space_in(tmp_path / "b", identity), text_keys(identity.to_bytes(), "q: ", texts)
    out = np.empty((3, 8), np.float32)
    assert not space.read(space.refresh().find(keys), keys, out, np.arange(3)).any()
    assert (out == vectors).all()


def test_what_a_folder_needs(tmp_path: Path) -> None:
    numpy_cache(tmp_path / "numpy", ["a"])
    source = ["import", tmp_path / "numpy", "--cache", tmp_path / "b"]
    model = ["--model", "x/y", "--revision", "1"]
    result = run(*source)
    assert result.exit_code == 1 and "give --texts, --model" in result.stderr
    bad = tmp_path / "bad.jsonl"
    for content, said in (("{", "line 1 is no JSON"), ('"a"\n1', "line 2 is neither a string")):
        bad.write_text(content)
        result = run(*source, *model, "--dtype", "float32", "--texts", bad)
        assert result.exit_code == 1 and said in result.stderr
    result = run(*source, *model, "--dtype", "auto", "--texts", bad)
    assert result.exit_code == 1 and "--dtype auto says nothing" in result.stderr
    result = run(*source, *model, "--dtype", "float32", "--texts", tmp_path / "none")
    assert result.exit_code == 1 and "is no file" in result.stderr


def test_a_file_says_itself_what_it_is(tmp_path: Path) -> None:
    result = run("import", tmp_path / "x.parquet", "--model", "x/y", "--cache", tmp_path)
    assert result.exit_code == 1 and "says itself what it is" in result.stderr
