from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.identity.strict_json import MOST_BYTES, StrictJsonError, read_object

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | finite,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), values))
def test_what_json_writes_is_read(value: dict[str, object]) -> None:
    assert read_object(json.dumps(value)) == value
    assert read_object(json.dumps(value, ensure_ascii=True).encode()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no JSON"),
        ("[]", "is a list, not an object"),
        ("1", "is a int, not an object"),
        ('{"a": NaN}', "has NaN, which is no JSON"),
        ('{"a": [-Infinity]}', "has -Infinity, which is no JSON"),
        ('{"a": 1e999}', "has a number that is not finite: 1e999"),
        ('{"a": 1, "b": 2, "a": 1}', "has the name 'a' twice"),
        ('{"x": {"b": 1, "\\u0062": 2}}', "has the name 'b' twice"),
        ('{"a": ' + "1" * 5000 + "}", "is no JSON: Exceeds the limit"),
        ('{"a": 1} {"a": 1}', "is no JSON: Extra data"),
        ('{"a": "\n"}', "is no JSON: Invalid control character"),
        (b'{"a": "\xff"}', "is no JSON: 'utf-8' codec"),
        (b"\xef\xbb\xbf{}", "is no JSON: Unexpected UTF-8 BOM"),
    ],
    ids=str,
)
def test_nothing_else_is(text: str | bytes, why: str) -> None:
    with pytest.raises(StrictJsonError, match=why):
        read_object(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        '{"a":' * 2000 + "1" + "}" * 2000,
        '{"a": "\\"", "b": ' + "[" * 65 + "]" * 65 + "}",
    ],
    ids=["never closed", "objects", "after an escaped quote"],
)
def test_deep_nesting_is_an_error_in_words_and_quick(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(StrictJsonError, match=r"is nested [\d,]+ levels deep"):
        read_object(text)
    assert time.perf_counter() - began < 2


def test_brackets_in_a_string_are_no_nesting() -> None:
    assert read_object('{"a": "' + "[{" * 200 + '\\\\"}') == {"a": "[{" * 200 + "\\"}


def test_the_size_is_looked_at_first() -> None:
    began = time.perf_counter()
    with pytest.raises(StrictJsonError, match=r"is 100,000,000 long, and at most 1,048,576"):
        read_object("[" * 10**8)
    assert time.perf_counter() - began < 0.5
    assert MOST_BYTES == 2**20
