"""Keys: 16 bytes that stand for one text, or one pair of texts, under one identity and prompt.

    key = xxh3_128( len8(identity) identity  len8(prompt) prompt  len8(text) text )

and for the score of a pair

    key = xxh3_128( len8(identity) identity  len8(query_prefix) query_prefix
                    len8(document_prefix) document_prefix
                    len8(query) query  len8(document) document )

`len8` is the length in bytes as an unsigned 64-bit little-endian integer, so that no two
different inputs share their bytes: `("ab", "c")` and `("a", "bc")` differ. The digest is in
xxHash's canonical (big-endian) byte order. Strings are UTF-8. Changing anything here changes
every key, hence the format version in `store.schema`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from embcache.errors import InputError, shown
from embcache.identity.arrow_texts import ArrowTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES = 16

Keys = npt.NDArray[np.uint64]
"""`(n, 2) uint64`: the first and last eight bytes of each key, read as big-endian integers, so
that sorting these pairs sorts the keys' bytes."""

_len8 = struct.Struct("<Q").pack


def text_keys(identity: bytes, prompt: str, texts: Sequence[str]) -> Keys:
    """Hash texts to keys.

    Args:
        identity: Canonical bytes of the identity, see `Identity.to_bytes`.
        prompt: The prompt that is put in front of every text; "" for none.
        texts: `n` texts.

    Returns:
        `(n, 2) uint64`, row i is the key of `texts[i]`.

    Raises:
        InputError: A text or the prompt is no `str`, or holds a lone surrogate and so has no
            UTF-8 form. The message names the row.
    """
    prefix = _part(identity) + _part(_encode(prompt, "the prompt"))
    digest = xxhash.xxh3_128_digest
    try:
        # One loop over ready-made bytes; slices of Arrow's buffers are no faster.
        raws = texts.utf8() if isinstance(texts, ArrowTexts) else map(str.encode, texts)
        hashed = [digest(prefix + _len8(len(raw)) + raw) for raw in raws]
    except (UnicodeEncodeError, TypeError):
        for row, text in enumerate(texts):
            _encode(text, f"row {row}")
        raise
    return from_bytes(b"".join(hashed))


def pair_keys(
    identity: bytes, prefixes: tuple[str, str], queries: Sequence[str], documents: Sequence[str]
) -> Keys:
    """Hash ordered pairs of texts to keys.

    Args:
        identity: Canonical bytes of the identity, see `Identity.to_bytes`.
        prefixes: What is put in front of every query, and what in front of every document.
        queries: `n` texts, without the prefix.
        documents: `n` texts, without the prefix; `documents[i]` belongs to `queries[i]`.

    Returns:
        `(n, 2) uint64`, row i is the key of `(queries[i], documents[i])`.

    Raises:
        InputError: A text or prefix is no `str`, or has no UTF-8 form. The message names the row.
    """
    names = ("the query prefix", "the document prefix")
    heads = [_part(_encode(p, name)) for p, name in zip(prefixes, names, strict=True)]
    hasher = xxhash.xxh3_128(_part(identity) + b"".join(heads))
    hashed = []
    for row, (query, document) in enumerate(zip(queries, documents, strict=True)):
        pair = hasher.copy()
        pair.update(_part(_encode(query, f"the query of row {row}")))
        pair.update(_part(_encode(document, f"the document of row {row}")))
        hashed.append(pair.digest())
    return from_bytes(b"".join(hashed))


def text_fault(text: object) -> str | None:
    """Why something can have no key.

    Args:
        text: A text, if all is well.

    Returns:
        What is wrong with it and what to do, so that "row n " in front makes a sentence; None for a
        text that has a UTF-8 form.
    """
    if not isinstance(text, str):
        return (
            f"is no text but {type(text).__name__}: {shown(text)}. Every input must be a str; drop "
            "or replace the row."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"holds a lone surrogate, {text[error.start : error.end]!r} at character "
            f"{error.start} of {text[:60]!r}: it has no UTF-8 form, and tokenizers refuse it. "
            "Clean it with text.encode('utf-8', 'replace').decode()."
        )
    return None


def from_bytes(raw: bytes | memoryview) -> Keys:
    """Read keys as Lance stores them.

    Args:
        raw: `n` keys of 16 bytes, one behind the other.

    Returns:
        `(n, 2) uint64`, row i = i-th key.
    """
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def to_bytes(keys: Keys) -> bytes:
    """Write keys as Lance stores them, the reverse of `from_bytes`.

    Args:
        keys: `(n, 2) uint64`.

    Returns:
        `n * 16` bytes.
    """
    return keys.astype(">u8").tobytes()


def _part(raw: bytes) -> bytes:
    return _len8(len(raw)) + raw


def _encode(text: Any, where: str) -> bytes:
    try:
        return str.encode(text)
    except (UnicodeEncodeError, TypeError) as error:
        raise InputError(f"{where} {text_fault(text)}") from error
