from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from embcache import InputError
from embcache.identity.keys import from_bytes, pair_keys, text_fault, text_keys, to_bytes

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def test_the_documented_layout_is_what_is_hashed() -> None:
    raw = b"".join(len(p).to_bytes(8, "little") + p for p in (b"id", b"query: ", "é".encode()))
    assert to_bytes(text_keys(b"id", "query: ", ["é"])) == xxhash.xxh3_128_digest(raw)


def test_keys_never_change_between_versions() -> None:
    assert to_bytes(text_keys(b"identity", "p", ["text"])).hex() == (
        "6542940b746aadd85646a838059ac65c"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"i", "ab", "c"), (b"i", "a", "bc")),
        ((b"ia", "b", "c"), (b"i", "ab", "c")),
        ((b"i", "", "ab"), (b"i", "ab", "")),
        ((b"i", "", "a"), (b"i", "", "a ")),
        ((b"i", "", "é"), (b"i", "", "e\u0301")),
    ],
)
def test_different_triples_have_different_keys(
    one: tuple[bytes, str, str], other: tuple[bytes, str, str]
) -> None:
    keys = [to_bytes(text_keys(identity, prompt, [t])) for identity, prompt, t in (one, other)]
    assert keys[0] != keys[1]


@given(st.lists(st.tuples(st.binary(), text, text), min_size=2, max_size=8, unique=True))
def test_distinct_inputs_have_distinct_keys(triples: list[tuple[bytes, str, str]]) -> None:
    keys = {to_bytes(text_keys(identity, prompt, [t])) for identity, prompt, t in triples}
    assert len(keys) == len(triples)


@given(st.lists(text, max_size=20))
def test_row_i_is_the_key_of_text_i(texts: list[str]) -> None:
    keys = text_keys(b"i", "p", texts)
    assert keys.shape == (len(texts), 2) and keys.dtype == np.uint64
    for row, each in enumerate(texts):
        assert (keys[row] == text_keys(b"i", "p", [each])[0]).all()
    assert (from_bytes(to_bytes(keys)) == keys).all()


@pytest.mark.parametrize("bad", ["lone \ud800 surrogate", "\udfff"])
def test_lone_surrogate_names_the_row(bad: str) -> None:
    with pytest.raises(InputError, match="row 2 holds a lone surrogate"):
        text_keys(b"i", "", ["a", "b", bad])


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["list"]])
def test_what_is_no_text_names_the_row_and_type(bad: object) -> None:
    with pytest.raises(InputError, match=f"row 1 is no text but {type(bad).__name__}"):
        text_keys(b"i", "", ["a", bad])  # type: ignore[list-item]


class Named(str, Enum):  # noqa: UP042 - its str() is no longer its text
    one = "a text"


def test_what_has_a_key_has_no_fault() -> None:
    """A subclass of str is its text, whatever str() makes of it."""
    for text in ("", "\U0001f600", "\x00", Named.one, np.str_("a text")):
        assert text_fault(text) is None
    plain, named = (pair_keys(b"i", ("", ""), [text], ["d"]) for text in ("a text", Named.one))
    assert (plain == named).all() and (text_keys(b"i", "", [Named.one]) != plain).any()
    assert str(text_fault(b"a")).startswith("is no text but bytes: b'a'.")
    assert str(text_fault("ab\udc80")).startswith(
        "holds a lone surrogate, '\\udc80' at character 2"
    )


def test_pairs_are_hashed_as_documented() -> None:
    parts = [b"identity", b"q: ", b"d: ", "ä".encode(), b"doc"]
    raw = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    [key] = pair_keys(b"identity", ("q: ", "d: "), ["ä"], ["doc"])
    assert to_bytes(key[None]) == xxhash.xxh3_128_digest(raw)


def test_no_two_pairs_share_a_key() -> None:
    pairs = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", "bc"), ("ab", "c")]
    prefixes = [("", ""), ("a", ""), ("", "a")]
    keys = [pair_keys(b"i", p, *zip(*pairs, strict=True)).tobytes() for p in prefixes]
    distinct = {raw[at : at + 16] for raw in keys for at in range(0, len(raw), 16)}
    assert len(distinct) == len(pairs) * len(prefixes)


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (["a", 3], ["b", "c"], "the query of row 1 is no text but int"),
        (["a"], [None], "the document of row 0 is no text but NoneType"),
        (["\ud800"], ["b"], "the query of row 0 holds a lone surrogate"),
    ],
)
def test_a_pair_that_is_no_text(queries: list[Any], documents: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair_keys(b"i", ("", ""), queries, documents)
