"""JSON lines and arrays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import ConfigError, InputError
from embcache.warm import Columns, json_files
from tests.warm.reading import places, read

AS_IS = Columns(role="other")


def write(folder: Path, content: str | bytes, name: str = "x.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=9),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(1, 40),
)
def test_arrays(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    indent: int | None,
    ascii_: bool,
    chunk: int,
) -> None:
    """However they are printed, and wherever a piece that is read ends."""
    rows = [{"n": i, "text": text, "x": [{"y": None}]} for i, text in enumerate(texts)]
    path = write(
        tmp_path_factory.mktemp("json"), json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK", chunk)
        assert read("jsonl", path, columns=AS_IS) == texts


def test_places_in_an_array(tmp_path: Path) -> None:
    path = write(
        tmp_path, '\n[{"text": "a"},\n 3, {"text": "\\ud83d"}, {"text": NaN}, {"text": "b"}]\n'
    )
    found, bad = places("jsonl", path)
    assert found == {"row 0": "a", "row 4": "b"}
    assert bad == [
        "row 1: a JSON int, not an object with columns",
        "row 2: column 'text' is no UTF-8 text ('\\ud83d' at character 0)",
        "row 3: column 'text' is float nan, not a string",
    ]


def test_an_array_with_nothing_in_it(tmp_path: Path) -> None:
    assert read("jsonl", write(tmp_path, " [ ] ")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"', r"row 1: broken JSON \(Expecting ',' delimiter"),
        ('[{"text": "a"}, {"text": "b', r"row 1: broken JSON \(Unterminated string"),
        ('[{"text": "a"}', r"broken JSON array \(the file ends after row 0\)"),
        ('[{"text": "a"},]', r"row 1: broken JSON \(Expecting value"),
        ('[{"text": "a"} {"text": "b"}]', r"'\{' instead of a comma or \] after row 0"),
        ('[{"text": "a"}]\n{"text": "b"}', r"there is more behind the end of the JSON array"),
        ("[" + '{"text": "a"}, ' * 9 + "{broken}" + ', {"text": "a"}' * 999 + "]", "row 9: broken"),
    ],
)
def test_a_broken_array(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read("jsonl", write(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        '{\n  "data": [\n    {"text": "a"}\n  ]\n}',
        '{"data": [\n{"text": "a"}]}',
        '\n{"text":\n"a"}\n{"text":\n"b"}',
        '{"version": 1,\n"data": []}',
    ],
)
def test_an_object_over_several_lines(content: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"goes on in the next one\. Give one object a line, or an"
    ):
        read("jsonl", write(tmp_path, content))


def test_a_list_inside_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, '{"data": [{"text": "a"}]}')
    with pytest.raises(ConfigError, match="has no column 'text', only 'data'"):
        read("jsonl", path, report=lambda row: None)


def test_a_first_line_that_is_broken_costs_one_row(tmp_path: Path) -> None:
    for first in ("{broken", '{"text": "a', '{"text" 1}', "text"):
        found, bad = places("jsonl", write(tmp_path, f'{first}\n\n{{"text": "b"}}\n'))
        assert found == {"line 3": "b"} and bad[0].startswith("line 1: broken JSON")


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    deep = "[" * 200_000
    found, bad = places("jsonl", write(tmp_path, f'{{"text": {deep}\n{{"text": "a"}}\n'))
    assert found == {"line 2": "a"} and "recursion" in bad[0]
    with pytest.raises(InputError, match="row 1: JSON that is nested too deeply"):
        read("jsonl", write(tmp_path, f'[{{"text": "a"}}, {deep}'))


def test_nested_columns_by_their_path(tmp_path: Path) -> None:
    path = write(tmp_path, '{"doc": {"text": "a"}}\n{"doc": null}\n{"doc.text": "b"}\n')
    found, bad = places("jsonl", path, Columns("doc.text"))
    assert found == {"line 1": "a", "line 3": "b"}
    assert bad == ["line 2: column 'doc.text' is null, not a string"]
    with pytest.raises(ConfigError, match=r"has no column 'doc.body', only 'doc', 'doc.text'"):
        read("jsonl", path, columns=Columns("doc.body"), report=lambda row: None)


def test_a_number_of_thousands_of_digits_in_an_array(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"text": ' + "1" * 5000 + "}]")
    with pytest.raises(InputError, match="row 0: JSON that cannot be read: Exceeds the limit"):
        read("jsonl", path)
