"""Keys: 16 bytes that stand for one text under one identity and prompt.

    key = xxh3_128( len8(identity) identity  len8(prompt) prompt  len8(text) text )

`len8` is the length in bytes as an unsigned 64-bit little-endian integer, so that no two
different triples share their bytes: `("ab", "c")` and `("a", "bc")` differ. The digest is in
xxHash's canonical (big-endian) byte order. Strings are UTF-8. Changing anything here changes
every key, hence the format version in `store.schema`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

from embcache.errors import InputError

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
    head = _encode(prompt, "the prompt")
    prefix = _len8(len(identity)) + identity + _len8(len(head)) + head
    digest = xxhash.xxh3_128_digest
    try:
        # One loop over ready-made bytes: 50,000 texts of 240 bytes take about 12 ms. Hashing
        # Arrow's buffers without making strings first was no faster.
        hashed = [digest(prefix + _len8(len(raw)) + raw) for raw in map(str.encode, texts)]
    except (UnicodeEncodeError, TypeError):
        for row, text in enumerate(texts):
            _encode(text, f"row {row}")
        raise
    return from_bytes(b"".join(hashed))


def from_bytes(raw: bytes | memoryview) -> Keys:
    """Read concatenated 16-byte keys, as Lance stores them, into `(n, 2) uint64`."""
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def to_bytes(keys: Keys) -> bytes:
    """The reverse of `from_bytes`: `n * 16` bytes."""
    return keys.astype(">u8").tobytes()


def _encode(text: object, where: str) -> bytes:
    if not isinstance(text, str):
        raise InputError(
            f"{where} is no text but {type(text).__name__}: {text!r:.80}. Every input must be a "
            "str; drop or replace the row."
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds a lone surrogate, {text[error.start : error.end]!r} at character "
            f"{error.start} of {text[:60]!r}: it has no UTF-8 form, and tokenizers refuse it. "
            "Clean it with text.encode('utf-8', 'replace').decode()."
        ) from error
