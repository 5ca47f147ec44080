from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.errors import InputError
from embcache.identity import arrow_texts
from embcache.identity.arrow_texts import ArrowTexts
from embcache.identity.keys import text_keys

TEXTS = ["", "a", "Ünïcødé", "漢字 🐍", "with\0nul", "x" * 5000]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])))), st.booleans())
def test_bytes_and_keys_are_those_of_the_strings(chunks: list[list[str]], large: bool) -> None:
    kind = pa.large_string() if large else pa.string()
    texts = [text for chunk in chunks for text in chunk]
    found = ArrowTexts(pa.chunked_array(chunks, kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_texts, "_AT_ONCE", 2)
        assert list(found.utf8()) == [text.encode() for text in texts]
        keys = text_keys(b"identity", "prompt", found)
    assert (keys == text_keys(b"identity", "prompt", texts)).all()
    assert (list(found), len(found)) == (texts, len(texts))


@pytest.mark.parametrize("most_strings", [0, 2**26])
def test_a_slice_of_a_column(most_strings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_texts, "_AT_ONCE", 3)
    monkeypatch.setattr(arrow_texts, "_MOST_STRINGS", most_strings)
    found = ArrowTexts(pa.chunked_array([TEXTS, TEXTS]).slice(4, 5))
    expected = (TEXTS + TEXTS)[4:9]
    assert [raw.decode() for raw in found.utf8()] == expected == list(found)
    assert (found[1], found[-1], found[1:3]) == (expected[1], expected[-1], expected[1:3])
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        found[5]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_long_texts_one_by_one(kind: pa.DataType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_texts, "_BYTES_AT_ONCE", 1000)
    found = ArrowTexts(pa.chunked_array([TEXTS, [], TEXTS[::-1], TEXTS], kind).slice(2, 15))
    assert [raw.decode() for raw in found.utf8()] == (TEXTS + TEXTS[::-1] + TEXTS)[2:17]


def test_chosen_rows_of_more_than_an_array_holds() -> None:
    text = "x" * 3_000_000
    found = ArrowTexts(pa.chunked_array([pa.array([text])] * 800))  # 2.4 GB, if they were copied
    assert {len(raw) for raw in found.utf8()} == {len(text)}


@pytest.mark.parametrize("most_strings", [0, 2**26])
def test_strings_of_a_large_column_are_kept_nowhere(
    most_strings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be mapped from a file that is larger than memory."""
    monkeypatch.setattr(arrow_texts, "_MOST_STRINGS", most_strings)
    found = ArrowTexts(pa.chunked_array([TEXTS]))
    assert (found[5] is found[5]) == (most_strings > 0)


def test_bytes_that_are_no_text() -> None:
    """Arrow takes them unseen, from a Parquet file, say."""
    raws = pa.array([b"a text", b"\xed\xa0\x80"])
    broken = pa.StringArray.from_buffers(2, raws.buffers()[1], raws.buffers()[2])
    found = ArrowTexts(pa.chunked_array([pa.array(["one", "two"]), broken]))
    text_keys(b"identity", "", found)
    with pytest.raises(
        InputError, match=r"^row 3 is no text: b.* no UTF-8 from byte 0 on, .* Drop"
    ):
        found[0]


def test_hashing_makes_no_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ArrowTexts(pa.chunked_array([TEXTS]))
    text_keys(b"identity", "", found)
    assert "_strings" not in vars(found)
    assert found[2] == TEXTS[2] and "_strings" in vars(found)
