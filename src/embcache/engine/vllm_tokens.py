"""Token ids as vLLM would make them, for many texts at once, and which texts it would refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from embcache.engine.runs import runs, text_sizes

TRUNCATE = {"truncate_prompt_tokens": -1}
"""vLLM's `tokenization_kwargs`: cut each text to the model's own limit, as mteb does."""

NO_TOKENS = (
    "has no tokens under this model's tokenizer, and vLLM takes no empty input. Drop the row, or "
    "give it a prompt"
)

TOKENIZED_BYTES = 2**21
"""Bytes of texts that a tokenizer gets at once. For each token, also for those that are cut off, it
makes some 70 bytes of ids, masks, offsets and words."""

TokenIds = list[list[int]]


def tokenizes_plainly(renderer: Any) -> bool:
    """Whether vLLM's renderer does nothing but call a fast tokenizer, text by text.

    Args:
        renderer: `vllm.LLM.renderer`.
    """
    return (
        type(renderer).__name__ == "HfRenderer"
        and getattr(renderer, "mm_processor", None) is None
        and getattr(renderer.tokenizer, "is_fast", False)
    )


def tokenize(renderer: Any, texts: Sequence[str]) -> tuple[TokenIds, dict[int, str]]:
    """Tokenize texts as vLLM does, and find those that it would refuse.

    Args:
        renderer: `vllm.LLM.renderer`.
        texts: `n` texts.

    Returns:
        The token ids of each text, after truncation, special tokens included; none for a text
        that is refused. And the refused ones: which of the texts, from 0, and why.
    """
    if tokenizes_plainly(renderer):
        token_ids: TokenIds = []
        refused: dict[int, str] = {}
        for run in runs(text_sizes(texts), TOKENIZED_BYTES):
            ids, bad = _in_one_batch(renderer, texts[run])
            refused |= {run.start + row: reason for row, reason in bad.items()}
            token_ids += ids
    else:
        token_ids, refused = _by_renderer(renderer, texts)
    empty = {row: NO_TOKENS for row, ids in enumerate(token_ids) if not ids}
    return token_ids, empty | refused


def _in_one_batch(renderer: Any, texts: Sequence[str]) -> tuple[TokenIds, dict[int, str]]:
    """As `BaseRenderer._tokenize_prompt`, with one call for many texts, which is much faster.

    The parameters (lower-casing from sentence_bert_config.json, length, special tokens) are the
    engine's, so the ids are those that vLLM would make; a test compares vectors bit for bit.
    """
    tokenizer = renderer.get_tokenizer()
    params = _parameters(renderer)
    cleaned = [
        params.apply_pre_tokenization(tokenizer, {"prompt": text})["prompt"] for text in texts
    ]
    kwargs = params.get_encode_kwargs()
    try:
        ids: TokenIds = tokenizer(cleaned, **kwargs)["input_ids"]
        return ids, {}
    except Exception:  # one text fails the call for all; each by itself says which
        return one_by_one(cleaned, lambda text: tokenizer(text, **kwargs)["input_ids"])


def one_by_one(
    texts: Sequence[str], ids_of: Callable[[str], list[int]]
) -> tuple[TokenIds, dict[int, str]]:
    """Tokenize texts by themselves, so that one which the tokenizer refuses is told from others.

    Args:
        texts: `n` texts.
        ids_of: Tokenizes one; may raise whatever it likes.

    Returns:
        As `tokenize`.
    """
    token_ids: TokenIds = []
    refused: dict[int, str] = {}
    for row, text in enumerate(texts):
        try:
            token_ids.append(ids_of(text))
        except Exception as error:  # of many kinds, from many tokenizers; it goes into the reason
            said = f"{type(error).__name__}: {str(error).rstrip('.')}"
            refused[row] = f"is refused by the tokenizer ({said}). Clean or drop the row"
            token_ids.append([])
    return token_ids, refused


def _by_renderer(renderer: Any, texts: Sequence[str]) -> tuple[TokenIds, dict[int, str]]:
    """As vLLM will do it once more when it gets the texts: slower, and right for any renderer."""
    params = _parameters(renderer)
    tokenize_prompt = renderer.tokenize_prompt  # outside: a vLLM without it refuses no text
    return one_by_one(
        texts, lambda text: tokenize_prompt({"prompt": text}, params)["prompt_token_ids"]
    )


def _parameters(renderer: Any) -> Any:
    return renderer.default_cmpl_tok_params.with_kwargs(**TRUNCATE)
