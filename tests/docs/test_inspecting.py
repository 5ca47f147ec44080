"""The code of docs/inspecting.md runs, block by block, beside a small cache, and prints this."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.identity.identity import Identity
from embcache.identity.keys import KEY_BYTES, pair_keys, text_keys, to_bytes
from embcache.store import SCORES, VECTORS, Database, Rows
from embcache.store.verify import row_checksums
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "inspecting.md").read_text(encoding="utf-8")
IDENTITY = Identity("organization/name", "1", "float32")
QUERIES = ["How do bees find home?", "How do ships float?", "Why is the sky blue?"]
DOCUMENTS = [f"Document {i} {'is long ' * i}".strip() for i in range(5)]


def fill(cache: Path) -> None:
    space = Database(cache, writable=True).space(IDENTITY, "organization/name", "vllm 1.0")
    for seed, (prompt, texts) in enumerate((("query: ", QUERIES), ("passage: ", DOCUMENTS))):
        vectors = np.random.default_rng(seed).standard_normal((len(texts), 16)).astype(np.float32)
        lengths = np.array([len(text.split()) for text in texts], np.int32)
        keys = text_keys(IDENTITY.to_bytes(), prompt, texts)
        columns = {"text": texts, "prompt": prompt, "prompt_type": "query", "task": "Task"}
        space.add(Rows(keys, vectors, columns, lengths))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    """What each block printed, and the names that they made."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("docs")
    fill(folder / "cache")
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    with contextlib.chdir(folder):
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, "docs/inspecting.md", "exec"), names)
            outputs.append(output.getvalue())
    return outputs, names


def test_blocks_print_what_is_there(printed: tuple[list[str], dict[str, Any]]) -> None:
    outputs, _ = printed
    (_, by_key, batches, duck, longest, pola, pandas, numpy, hub, deleted, *others) = outputs
    restored, compacted, copied = others
    assert by_key == "How do bees find home? 16 5\n"
    assert batches == "longest query: 22 characters\n"
    assert re.search(r"passage: +│ +5 │ +10 │", duck) and re.search(r"query: +│ +3 │ +5 │", duck)
    assert longest == str([(DOCUMENTS[4],), (DOCUMENTS[3],), (DOCUMENTS[2],)]) + "\n"
    assert pola == "[('passage: ', 5), ('query: ', 3)]\n" + DOCUMENTS[4] + "\n"
    assert pandas == "{'passage: ': 5, 'query: ': 3}\nTrue\n"
    assert numpy == "nearest: How do bees find home?\n"
    assert hub == "8 ['text', 'vector']\n"
    assert deleted == "before: 8\nafter: 6\n"
    assert restored == "restored: 8\n"
    assert compacted == "1 fragment\n"
    pulled, progress, pushed = copied.splitlines()
    assert pulled.endswith(": 3 of 8 rows added, 0 there already, 5 not asked for")
    assert progress == "3 of 3" and pushed.endswith(": 3 of 3 rows added, 0 there already")


def test_the_documented_formulas_are_those_of_the_code(
    printed: tuple[list[str], dict[str, Any]],
) -> None:
    key, checksum = printed[1]["key"], printed[1]["checksum"]
    raw = IDENTITY.to_bytes()
    for prompt, text in (("", ""), ("p: ", "ä\0b"), ("a", "bc")):
        mine = text_keys(raw, prompt, [text])
        assert key(raw, prompt, text) == to_bytes(mine)
        vector = np.arange(5, dtype=np.float32)
        assert checksum(to_bytes(mine), vector) == row_checksums(mine, vector[None])[0]
    pair = pair_keys(raw, ("q: ", "d: "), ["query"], ["document"])
    assert key(raw, "q: ", "d: ", "query", "document") == to_bytes(pair)


def test_every_column_and_metadata_key_is_described() -> None:
    described = set(re.findall(r"`([a-z_:]+)`", PAGE))
    for layout in (VECTORS, SCORES):
        assert {layout.value, *layout.texts, *layout.notes} <= described
    names = {"format_version", "identity", "model", "version", "engine_version"}
    assert {f"embcache:{name}" for name in names} <= described
    assert {"key", "checksum", "n_tokens", "created_at"} <= described
    assert f"fixed_size_binary({KEY_BYTES})" in PAGE


def test_commands_that_are_named_exist() -> None:
    from typer.testing import CliRunner

    from embcache.cli.app import app

    commands = set(re.findall(r"embcache ([a-z]+) --", PAGE))
    assert {"check", "compact"} <= commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
