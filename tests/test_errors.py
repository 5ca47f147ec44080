from __future__ import annotations

from embcache.errors import shown


def test_short_values_are_as_python_writes_them() -> None:
    assert shown("it's") == '"it\'s"' and shown(None) == "None" and shown([1, "a"]) == "[1, 'a']"


def test_of_a_long_text_both_ends_and_both_quotes() -> None:
    text = shown("begin " + "x" * 10_000 + " end")
    assert text.startswith("'begin ") and text.endswith(" end'") and "..." in text
    assert len(text) == 70
