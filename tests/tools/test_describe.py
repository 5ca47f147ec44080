from __future__ import annotations

from collections.abc import Callable

import lance
import numpy as np
import pytest

from embcache import CacheError
from embcache.store import Rows, Space
from embcache.tools.describe import TokenBin, ValueCount, describe
from tests.spaces import folder, make_rows, vectors_of

DIM = 8


def test_describe_counts_everything(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows([f"text {i}" for i in range(20)]))
    space.add(vectors_of(["other"], np.ones((1, DIM)), prompt="q: "))
    found = describe(space)
    assert (found.rows, found.fragments, found.dim, found.value) == (21, 2, DIM, "vector")
    assert found.format_version == 1 and found.metadata.engine_version == "vllm 1.0"
    assert found.columns["key"] == "fixed_size_binary[16]" and found.columns["text"] == "string"
    assert found.counts["prompt"] == [ValueCount("p: ", 20), ValueCount("q: ", 1)]
    assert found.counts["task"] == [ValueCount("Task", 20), ValueCount(None, 1)]
    assert found.tokens == [TokenBin(0, 7, 8), TokenBin(8, 15, 8), TokenBin(16, 31, 4)]
    assert found.tokens_unknown == 1
    assert found.size_bytes == sum(
        p.stat().st_size for p in folder(space).rglob("*") if p.is_file()
    )
    created = lance.dataset(str(folder(space))).to_table()["created_at"].to_pylist()
    assert (found.first_written, found.last_written) == (min(created), max(created))


def test_describe_scores(scores: Space) -> None:
    found = describe(scores)
    assert (found.value, found.dim, found.rows) == ("score", 1, 2)
    assert found.counts["query_prefix"] == [ValueCount("q: ", 2)] and found.tokens == []


def test_a_prompt_for_each_text_is_counted_up_to_a_thousand(
    open_space: Callable[..., Space],
) -> None:
    space, texts = open_space(), [f"text {i}" for i in range(1200)]
    rows = make_rows(texts)
    space.add(Rows(rows.keys, rows.values, {"text": texts, "prompt": texts}))
    found = describe(space)
    assert len(found.counts["prompt"]) == 1000 and found.uncounted["prompt"] == 200


def test_describe_an_emptied_space(open_space: Callable[..., Space]) -> None:
    space, rows = open_space(), make_rows(["a"])
    space.add(rows)
    space.drop(rows.keys)
    found = describe(space)
    assert (found.rows, found.tokens, found.first_written) == (0, [], None)


def test_describe_a_broken_table(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    for path in (folder(space) / "data").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CacheError, match=r"(Scanning|Opening) .* failed"):
        describe(space)
