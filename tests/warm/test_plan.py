from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embcache import VllmEncoderWrapper
from embcache.warm import BadRow, Warmer, plan
from embcache.warm.plan import Sample
from tests.fakes import FakeEngine
from tests.models import MINILM, save_bert
from tests.warm.test_run import TEXTS, lines, stream

Make = Callable[..., VllmEncoderWrapper]

CORPORA = {
    "English": "The quick brown fox jumps over the lazy dog, again and again. ",
    "Chinese": "人工智能是计算机科学的一个分支。",
    "Japanese": "検索システムは文書を見つけます。",
    "Thai": "ภาษาไทยไม่มีช่องว่าง ",
    "Russian": "поиск документов ",
    "emoji": "😀 🚀👨\u200d👩\u200d👧 🇩🇪 ",
    "code": "for (int i=0; i<n; ++i) { x[i] += y[i]*z; }\n",
    "numbers": "3.14159, 2.71828; 0x5f3759df\t",
}


def texts_of(sentence: str, count: int = 3000) -> list[str]:
    """Texts of very different lengths, some of them longer than the model's limit."""
    lengths = np.random.default_rng(0).lognormal(1.5, 1.1, count).astype(int)
    return [f"{i} " + sentence * (1 + int(length)) for i, length in enumerate(lengths)]


def true_tokens(texts: list[str], limit: int) -> int:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(MINILM), local_files_only=True)
    return sum(map(len, tokenizer(texts, truncation=True, max_length=limit)["input_ids"]))


@pytest.mark.parametrize("name", CORPORA)
def test_tokens_are_counted_with_the_models_tokenizer(make_encoder: Make, name: str) -> None:
    """Truncated at the model's limit, and in a sample, since there may be millions."""
    texts = texts_of(CORPORA[name])
    encoder = make_encoder(str(MINILM))
    found = plan(Warmer(encoder), encoder, stream(texts))
    assert found.tokens_from == "with the model's tokenizer, in 1,000 of the texts"
    assert found.tokens == pytest.approx(true_tokens(texts, 256), rel=0.08)


def test_few_texts_are_counted_exactly(make_encoder: Make) -> None:
    """With their prompts; cached ones and duplicates are left out."""
    texts = texts_of(CORPORA["Chinese"], 200)
    Warmer(make_encoder(str(MINILM))).run(stream(texts[:50], prompt="query: "))
    encoder = make_encoder(str(MINILM))
    found = plan(Warmer(encoder), encoder, stream([*texts, *texts], prompt="query: "))
    assert found.tokens == true_tokens([f"query: {text}" for text in texts[50:]], 256)
    assert found.tokens_from == "with the model's tokenizer" and found.missing == 150


@pytest.mark.parametrize(
    ("arguments", "limit"), [({"max_model_len": 16}, 16), ({"tokenizer": str(MINILM)}, 512)]
)
def test_arguments_that_decide_about_tokens(
    make_encoder: Make, tiny_model: Any, arguments: dict[str, Any], limit: int
) -> None:
    texts = texts_of(CORPORA["English"], 300)
    model = str(MINILM) if limit == 16 else str(tiny_model)
    encoder = make_encoder(model, **arguments)
    found = plan(Warmer(encoder), encoder, stream(texts))
    assert found.tokens == true_tokens(texts, limit)


# Tokens a character, from XLM-R's SentencePiece vocabulary to byte-level BPE. MiniLM's own
# vocabulary is English: a Thai word is one unknown token of it.
A_CHARACTER = {
    "English": (0.2, 0.3),
    "Chinese": (0.5, 1.2),
    "Japanese": (0.5, 1.2),
    "Thai": (0.3, 1.0),
    "Russian": (0.25, 0.6),
}


@pytest.mark.parametrize("name", A_CHARACTER)
def test_without_a_tokenizer_it_is_called_a_guess(make_encoder: Make, name: str) -> None:
    texts = texts_of(CORPORA[name], 300)
    encoder = make_encoder()  # its folder has no tokenizer
    found = plan(Warmer(encoder), encoder, stream(texts))
    assert found.tokens_from.startswith("a guess, 4 bytes a token: ")
    assert "has no vocabulary of a tokenizer here" in found.tokens_from
    least, most = A_CHARACTER[name]
    assert least < found.tokens / sum(map(len, texts)) < most


def test_without_a_tokenizer_cached_rows_tell(make_encoder: Make) -> None:
    """The fake engine counts words, which have five bytes here."""
    Warmer(make_encoder()).run(stream(TEXTS[:200]))
    encoder = make_encoder()
    found = plan(Warmer(encoder), encoder, stream(TEXTS))
    words = sum(len(text.split()) for text in TEXTS[200:])
    assert found.tokens == pytest.approx(words, rel=0.1)
    assert "bytes a token, as in the rows that are cached" in found.tokens_from


def test_a_book_in_the_sample(make_encoder: Make, tmp_path: Any) -> None:
    """Only its beginning is kept, and all of it is counted up to the model's limit."""
    save_bert(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    texts = ["word " * 100_000, "short"]
    for limit, expected in ((None, 512 + 3), (70_000, 70_000 + 3)):
        encoder = make_encoder(str(tmp_path / "bert"), max_model_len=limit)
        found = plan(Warmer(encoder), encoder, stream(texts))
        assert found.tokens == pytest.approx(expected, rel=1e-3)


def test_a_sample_gives_each_text_the_same_chance() -> None:
    counts = np.zeros(100)
    sample = Sample(10)
    for repetition in range(2000):
        sample.texts, sample.lengths, sample.seen = [], [], 0
        for at in range(0, 100, 7):
            sample.add([str(i) for i in range(at, min(at + 7, 100))])
        assert len(set(sample.texts)) == 10 and sample.seen == 100, repetition
        counts[[int(text) for text in sample.texts]] += 1
    assert counts.min() > 140 and counts.max() < 260  # 200 each; the deviation is 13


def test_a_sample_keeps_the_beginnings_of_long_texts() -> None:
    sample = Sample(2)
    sample.add(["a" * 10**6, "b"])
    assert [len(text) for text in sample.texts] == [2**14, 1] and sample.lengths == [10**6, 1]


def test_the_disk_takes_bytes_not_characters(make_encoder: Make) -> None:
    Warmer(make_encoder()).run(stream(["a"]))
    encoder = make_encoder()
    text = CORPORA["Chinese"] * 100
    (found, plain) = (plan(Warmer(encoder), encoder, stream([t])) for t in (text, "b"))
    assert found.disk_bytes is not None and plain.disk_bytes is not None
    assert found.disk_bytes - plain.disk_bytes == len(text.encode()) - 1


def test_texts_without_a_key_are_no_part_of_a_plan(make_encoder: Make) -> None:
    left_out: list[BadRow] = []
    encoder = make_encoder()
    warmer = Warmer(encoder, report=left_out.append)
    found = plan(warmer, encoder, [lines(["a", "lone \ud800"], 1)])
    assert (found.texts, found.missing) == (1, 1)
    assert [row.place for row in left_out] == ["x.jsonl, line 2"]


def test_a_plan_counts_and_starts_nothing(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    Warmer(make_encoder()).run(stream(TEXTS[:200]))
    encoder = make_encoder()
    found = plan(Warmer(encoder), encoder, stream([*TEXTS, *TEXTS], 130))
    assert (found.texts, found.unique, found.cached, found.missing) == (1000, 500, 200, 300)
    words = sum(len(text.split()) for text in TEXTS[200:])
    assert 0.5 * words < found.tokens < 2 * words
    assert found.disk_bytes is not None and 300 * 32 < found.disk_bytes < 300 * 1000
    assert fake_engines[-1].starts == 0


def test_a_plan_before_the_first_vector(make_encoder: Make) -> None:
    encoder = make_encoder()
    found = plan(Warmer(encoder), encoder, stream(TEXTS))
    assert (found.missing, found.disk_bytes) == (500, None) and found.tokens > 0
