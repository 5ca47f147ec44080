"""The text that is warmed is the one that mteb has encoded."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from mteb._create_dataloaders import (
    _combine_queries_with_instruction_text,
    _convert_conv_history_to_query,
    _corpus_to_dict,
)

from embcache import ConfigError
from embcache.warm import Columns
from embcache.warm.columns import names_in

BLANKS = ["x", " x", "x\n", "\t x \u00a0", "\x1cx", "\u200bx", "", "  "]
NAN = float("nan")


@pytest.mark.parametrize("text", BLANKS)
@pytest.mark.parametrize("title", [None, *BLANKS])
def test_a_document(text: str, title: str | None) -> None:
    row = {"id": "1", "text": text} | ({} if title is None else {"title": title})
    columns = Columns(title="title", title_is_optional=True)
    assert columns.join(row) == _corpus_to_dict(row)["text"]


@pytest.mark.parametrize("text", BLANKS)
@pytest.mark.parametrize("instruction", [None, *BLANKS])
def test_a_query(text: str, instruction: str | None) -> None:
    row = {"id": "1", "text": text, "instruction": instruction}
    made = _combine_queries_with_instruction_text(Dataset.from_list([row]))["text"][0]
    assert Columns(instruction="instruction", role="query").join(row) == made
    assert Columns(role="query").join(row) == text


CONVERSATIONS: list[Any] = [
    ["hello", " bye "],
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "bye"}],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", CONVERSATIONS)
def test_a_conversation_is_a_query(text: Any) -> None:
    columns = Columns(instruction="instruction", role="query")
    for row in ({"text": text}, {"text": text, "instruction": "find:"}):
        assert columns.join(row) == _convert_conv_history_to_query(dict(row))["text"]
    with pytest.raises(ValueError, match=r"'text' is list .*, not a string"):
        Columns().join({"text": text})


@pytest.mark.parametrize("text", BLANKS)
def test_another_text_is_as_it_is(text: str) -> None:
    assert Columns(role="other").join({"text": text}) == text


@pytest.mark.parametrize("none", [None, NAN, ""])
def test_no_title(none: Any) -> None:
    assert Columns(title="title").join({"text": " two ", "title": none}) == "two"
    assert Columns(title="title").join({"text": " two "}) == "two"


@pytest.mark.parametrize("title", [1, 1.5, True, ["A", "B"], {"a": 1}, b"\xff"])
def test_a_title_that_is_no_text(title: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'title' is (int|float|bool|list|dict|no UTF-8)"):
        Columns(title="title").join({"text": "x", "title": title})


@pytest.mark.parametrize("instruction", [1, ["A"], {}])
def test_an_instruction_that_is_no_text(instruction: Any) -> None:
    columns = Columns(instruction="instruction", role="query")
    with pytest.raises(ValueError, match=r"column 'instruction' is (int|list|dict)"):
        columns.join({"text": "x", "instruction": instruction})
    assert columns.join({"text": "x", "instruction": NAN}) == "x"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "a conversation without turns"),
        ([1], "a list with 1, and neither strings nor turns"),
        ([{"role": "user"}], "neither strings nor turns with role and content"),
        ([{"role": "user", "content": None}], "'text' is null, not a string"),
        (["a", 2], "'text' is int 2, not a string"),
    ],
)
def test_no_conversation(turns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(role="query").join({"text": turns})


def test_bytes_are_utf_8() -> None:
    row = {"text": "é ".encode(), "title": b"T"}
    assert Columns(title="title").join(row) == "T é"
    with pytest.raises(ValueError, match=r"'text' is no UTF-8 text .byte 0xe9 at 3"):
        Columns().join({"text": "café".encode("latin-1")})


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"doc": {"text": "in"}}, "in"),
        ({"doc": {"text": "in"}, "doc.text": "own"}, "own"),
        ({"a.b": {"doc": {"text": "in"}}, "a": {"x": 1}}, "in"),
    ],
)
def test_nested_columns(row: Any, text: str) -> None:
    path = "a.b.doc.text" if "a.b" in row else "doc.text"
    assert Columns(path).join(row) == text
    assert path in names_in(row, [path])


@pytest.mark.parametrize("row", [{"doc": None}, {"doc": {"text": None}}])
def test_a_row_without_the_outer_column(row: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'doc.text' is null"):
        Columns("doc.text").join(row)


@pytest.mark.parametrize("row", [{"doc": {"body": "x"}}, {"doc": "text"}, {"doc": [{"text": "x"}]}])
def test_a_path_that_leads_nowhere(row: Any) -> None:
    with pytest.raises(ValueError, match=r"no column 'doc.text' \(columns: 'doc'\)"):
        Columns("doc.text").join(row)
    assert names_in(row, ["doc.text"]) == ["doc"]


def test_titles_are_of_documents_and_instructions_of_queries() -> None:
    for role in ("query", "other"):
        with pytest.raises(ConfigError, match=r"column 'title' of titles: .* documents only"):
            Columns(title="title", role=role)
    for role in ("document", "other"):
        with pytest.raises(ConfigError, match=r"'how' of instructions: .* queries only"):
            Columns(instruction="how", role=role)
