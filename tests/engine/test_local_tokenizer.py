"""Counting tokens without an engine; the real tokenizer is all-MiniLM-L6-v2's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from embcache import ConfigError
from embcache.engine.local_tokenizer import LocalTokenizer
from tests.conftest import run_python
from tests.models import MINILM, TOKENIZER_FILES

TEXTS = ["", "one", "word " * 10_000, "中文和日本語", "😀👩\u200d👧", "x" * 5000, "for (;;) {}\n"]


def folder_of(path: Path, **config: Any) -> str:
    """A model's folder with a tokenizer and no weights."""
    path.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(MINILM / name, path / name)
    (path / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return str(path)


@pytest.mark.parametrize("limit", [None, 7])
def test_counts_are_those_of_the_tokenizer_cut_at_the_limit(limit: int | None) -> None:
    raw = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    raw.no_padding()
    raw.enable_truncation(limit or 256)  # that of sentence_bert_config.json
    tokenizer = LocalTokenizer(str(MINILM), None, {"max_model_len": limit})
    assert tokenizer.limit == (limit or 256)
    assert tokenizer.count(TEXTS).tolist() == [len(each.ids) for each in raw.encode_batch(TEXTS)]
    assert tokenizer.count([]).tolist() == []


@pytest.mark.parametrize(
    ("config", "file", "limit"),
    [
        ({"max_position_embeddings": 128}, None, 128),
        ({"max_position_embeddings": 2048}, None, 512),  # the tokenizer's own
        ({"max_position_embeddings": 128}, {"max_seq_length": 64}, 64),
        ({}, {"do_lower_case": True}, 512),
        ({"model_type": "no_such_type"}, {"max_seq_length": 99}, 99),
    ],
)
def test_the_lowest_limit_of_the_models_files(
    tmp_path: Path, config: Any, file: Any, limit: int
) -> None:
    model = folder_of(tmp_path / "model", **config)
    if file is not None:
        (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps(file))
    assert LocalTokenizer(model, None, {}).limit == limit


def test_another_tokenizer_is_counted_with(tmp_path: Path) -> None:
    characters = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    (tmp_path / "own").mkdir()
    characters.save(str(tmp_path / "own" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = LocalTokenizer(str(MINILM), None, {"tokenizer": str(tmp_path / "own")})
    assert tokenizer.count(["abba", "ab"]).tolist() == [4, 2]
    # It has no token for what it does not know, and raises; the engine will refuse such a text.
    assert tokenizer.count(["abba", "abc", "b"]).tolist() == [4, 0, 1]


def test_no_tokenizer_here(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny-model has no vocabulary of a tokenizer here\."):
        LocalTokenizer(str(tiny_model), None, {})
    with pytest.raises(ConfigError, match=r"tokenizer of org/none cannot be loaded here: OSError"):
        LocalTokenizer("org/none", "a" * 40, {})
    broken = folder_of(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="broken cannot be loaded here: "):
        LocalTokenizer(broken, None, {})


def test_a_hub_models_tokenizer_comes_from_the_local_cache(tmp_path: Path) -> None:
    """Though the hub could be asked: a dry run downloads nothing."""
    commit = "c" * 40
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    folder_of(snapshot, max_position_embeddings=128)
    (snapshot / "sentence_bert_config.json").write_text('{"max_seq_length": 33}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = f"""
import socket
def no(*_, **__):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no
from embcache.engine.local_tokenizer import LocalTokenizer
tokenizer = LocalTokenizer("org/name", {commit!r}, {{}})
print(tokenizer.limit, tokenizer.count(["one", "word " * 99]).tolist())
"""
    printed = run_python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="0")
    assert printed == "33 [3, 33]\n"
