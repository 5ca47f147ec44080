from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest

from embcache import CacheError
from embcache.store import Rows, Space, SpaceInfo
from embcache.tools.describe import TokenBin, ValueCount, describe, remove_space
from tests.spaces import info, make_rows, vectors_of

DIM = 8


def test_describe_counts_everything(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows([f"text {i}" for i in range(20)]))
    space.append(vectors_of(["other"], np.ones((1, DIM)), prompt="q: "))
    found = describe(info(space))
    assert (found.rows, found.fragments, found.dim, found.value) == (21, 2, DIM, "vector")
    assert found.format_version == 1 and found.info.metadata.engine_version == "vllm 1.0"
    assert found.columns["key"] == "fixed_size_binary[16]" and found.columns["text"] == "string"
    assert found.counts["prompt"] == [ValueCount("p: ", 20), ValueCount("q: ", 1)]
    assert found.counts["task"] == [ValueCount("Task", 20), ValueCount(None, 1)]
    assert found.tokens == [TokenBin(0, 7, 8), TokenBin(8, 15, 8), TokenBin(16, 31, 4)]
    assert found.tokens_unknown == 1
    assert found.size_bytes == sum(p.stat().st_size for p in space.path.rglob("*") if p.is_file())
    created = lance.dataset(str(space.path)).to_table()["created_at"].to_pylist()
    assert (found.first_written, found.last_written) == (min(created), max(created))


def test_describe_scores(scores: SpaceInfo) -> None:
    found = describe(scores)
    assert (found.value, found.dim, found.rows) == ("score", 1, 2)
    assert found.counts["query_prefix"] == [ValueCount("q: ", 2)] and found.tokens == []


def test_a_prompt_for_each_text_is_counted_up_to_a_thousand(
    open_space: Callable[..., Space],
) -> None:
    space, texts = open_space(), [f"text {i}" for i in range(1200)]
    rows = make_rows(texts)
    space.append(Rows(rows.keys, rows.values, {"text": texts, "prompt": texts}))
    found = describe(info(space))
    assert len(found.counts["prompt"]) == 1000 and found.uncounted["prompt"] == 200


def test_describe_an_emptied_space(open_space: Callable[..., Space]) -> None:
    space, rows = open_space(), make_rows(["a"])
    space.append(rows)
    space.delete(rows.keys)
    found = describe(info(space))
    assert (found.rows, found.tokens, found.first_written) == (0, [], None)


def test_remove(open_space: Callable[..., Space], tmp_path: Path) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    link = tmp_path / "link.lance"
    link.symlink_to(space.path)
    with pytest.raises(CacheError, match="is a link"):
        remove_space(link)
    remove_space(space.path)
    assert list(space.path.parent.iterdir()) == []
    with pytest.raises(CacheError, match="No such file"):
        remove_space(space.path)
    assert list(space.path.parent.iterdir()) == []


def test_describe_a_broken_table(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.append(make_rows(["a"]))
    for path in (space.path / "data").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CacheError, match=r"Reading .* failed"):
        describe(info(space))
