"""CSV and TSV: the text is the file's, or the row is named."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcache import ConfigError
from embcache.warm import Columns, Dialect
from tests.warm.reading import places, read

AS_IS = Columns(role="other")
SECOND = Columns("2", role="other")


def write(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


texts = st.lists(st.text('ab"\r\n,;\t\\ \0é', max_size=9), min_size=1, max_size=6)


@settings(max_examples=60)
@given(texts, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], delimiter: str, end: str
) -> None:
    made = io.StringIO(newline="")
    writer = csv.writer(made, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
    path = write(tmp_path_factory.mktemp("csv"), made.getvalue())
    assert read("csv", path, columns=AS_IS) == texts


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n", "\n\r", "\r\r\n"])
def test_line_breaks_in_quotes_are_the_text_s_own(end: str, tmp_path: Path) -> None:
    path = write(tmp_path, f'id,text\r\n1,"a{end}b"\r\n2,c\r\n')
    assert read("csv", path) == [f"a{end}b", "c"]
    assert read("csv", path) == list(pd.read_csv(path)["text"])


def test_a_text_s_line_is_the_one_it_begins_in(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,text\n1,"a\nb\nc"\n\n2,d\n3\n4,e\n')
    found, bad = places("csv", path)
    assert found == {"line 2": "a\nb\nc", "line 6": "d", "line 8": "e"}
    assert bad == [
        "line 7: 1 fields, and the first line has 2: is a delimiter or a line break in a field "
        "not quoted?"
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,hello, world", "line 3: 3 fields, and the first line has 2"),
        ("1", "line 3: 1 fields, and the first line has 2"),
        ('1,"a"b', "line 3: broken CSV (',' expected after '\"'); the line is lost"),
        ('1,"he said \\"no\\""', "line 3: broken CSV"),
        ('1,"open\n2,"x"', "line 3: broken CSV (',' expected after '\"'); lines 3 to 4 are lost"),
        (b"1,\xff", "line 3: column 'text' is no UTF-8 text"),
    ],
)
def test_a_row_that_is_no_text_s(row: str | bytes, reason: str, tmp_path: Path) -> None:
    row = row if isinstance(row, bytes) else row.encode()
    found, bad = places("csv", write(tmp_path, b"id,text\n1,before\n" + row + b"\n9,after\n"))
    assert list(found.values()) == ["before", "after"]
    assert len(bad) == 1 and bad[0].startswith(reason)


def test_a_quote_that_nothing_closes(tmp_path: Path) -> None:
    found, bad = places("csv", write(tmp_path, 'id,text\n1,a\n2,"open\n3,b\n'))
    assert found == {"line 2": "a"}
    assert bad == ["line 3: broken CSV (unexpected end of data); lines 3 to 4 are lost"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_by_the_columns(delimiter: str, tmp_path: Path) -> None:
    rows = [["id", "text"], ["1", "a"], ["2", "b"]]
    path = write(tmp_path, "".join(delimiter.join(row) + "\n" for row in rows))
    assert read("csv", path) == ["a", "b"]
    path = write(tmp_path, '"the, id";"text"\n1;"hello; world, you"\n')
    assert read("csv", path) == ["hello; world, you"]


def test_a_delimiter_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "id^text\n1^a\n")
    assert read("csv", path, dialect=Dialect("^")) == ["a"]
    with pytest.raises(ConfigError, match=r"has no column 'text', only 'id\^text'"):
        read("csv", path)
    for wrong in ("", "ab", '"', "\n"):
        with pytest.raises(ConfigError, match="is no delimiter: give one character"):
            Dialect(wrong)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1;a\n2;b\n", ["a", "b"]),
        ('"1","a, b"\n', ["a, b"]),
        ("1|a|c\n", ["a"]),
    ],
)
def test_no_header(content: str, expected: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, content)
    assert read("csv", path, columns=SECOND) == expected
    assert list(places("csv", path, SECOND)[0]) == [f"line {i + 1}" for i in range(len(expected))]


def test_whether_there_is_a_header(tmp_path: Path) -> None:
    """pandas names the columns of a data frame without names 0 and 1; an id may be 1, too."""
    path = write(tmp_path, "0,1\nx,a\n")
    first = Columns("1")
    with pytest.raises(ConfigError, match="'1' is a number, and the first line has a field '1'"):
        read("csv", path, columns=first)
    assert read("csv", path, columns=first, dialect=Dialect(header=True)) == ["a"]
    assert read("csv", path, columns=first, dialect=Dialect(header=False)) == ["0", "x"]
    with pytest.raises(ConfigError, match="without a header, so there is no column 'text'"):
        read("csv", path, dialect=Dialect(header=False))
    with pytest.raises(ConfigError, match="has no column '3', only '1', '2'"):
        read("csv", path, columns=Columns("3"))
    with pytest.raises(ConfigError, match="has no column '0', only '1', '2'"):
        read("csv", path, columns=Columns("0"), dialect=Dialect(header=False))


def test_a_first_line_that_can_be_split_at_two_delimiters(tmp_path: Path) -> None:
    path = write(tmp_path, "1;hello, world\n")
    with pytest.raises(ConfigError, match=r"can be split at ',' and at ';'\. Say at which"):
        read("csv", path, columns=SECOND)
    assert read("csv", path, columns=SECOND, dialect=Dialect(";")) == ["hello, world"]


@pytest.mark.parametrize("header", ["text,text", "id,text,text"])
def test_a_column_that_is_there_twice(header: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2 columns named 'text', and which is meant"):
        read("csv", write(tmp_path, f"{header}\na,b\n"))


def test_a_header_alone_and_no_header_at_all(tmp_path: Path) -> None:
    assert read("csv", write(tmp_path, "id,text\n")) == []
    with pytest.raises(ConfigError, match=r"has no column 'text', and no others: empty\?"):
        read("csv", write(tmp_path, ""))


def test_long_fields(tmp_path: Path) -> None:
    text = "word, " * 100_000
    assert read("csv", write(tmp_path, f'text\n"{text}"\n'), columns=AS_IS) == [text]


MSMARCO = (
    '0\tThe "presence" of communication\n1\t"unbalanced\n2\tsaid "no"\r\n3\ta\rb\n4\t\\t, \\N\n'
)


def test_tsv_as_ms_marco_has_it(tmp_path: Path) -> None:
    path = write(tmp_path, MSMARCO, "collection.tsv")
    found, bad = places("tsv", path, SECOND)
    assert bad == []
    assert list(found.items()) == [
        ("line 1", 'The "presence" of communication'),
        ("line 2", '"unbalanced'),
        ("line 3", 'said "no"'),
        ("line 4", "a\rb"),
        ("line 5", "\\t, \\N"),
    ]


def test_a_name_where_there_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path, f"0\t{'passage ' * 50}\n", "collection.tsv")
    message = (
        r"no column 'text', only '0', 'passage .*\.\.\..* without a header are numbers, from 1"
    )
    with pytest.raises(ConfigError, match=message):
        read("tsv", path)


def test_tsv_with_a_header_and_too_many_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, "id\ttext\n1\ta\n2\ttab\there\n3\tb\n", "x.tsv")
    found, bad = places("tsv", path)
    assert found == {"line 2": "a", "line 4": "b"}
    assert bad[0].startswith("line 3: 3 fields, and the first line has 2")


def test_quotes_in_tsv_are_doubted_and_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "text": ["plain", 'a\tb\n"c"', '"d"']})
    frame.to_csv(tmp_path / "x.tsv", sep="\t", index=False)
    path = tmp_path / "x.tsv"
    quoted = Dialect(quotes=True)
    assert read("tsv", path, dialect=quoted) == list(frame["text"]) and not caplog.records
    path = write(tmp_path, 'text\tid\n"a"\t1\n"b"\t2\n', "y.tsv")
    with caplog.at_level(logging.WARNING):
        assert read("tsv", path) == ['"a"', '"b"']
    [record] = caplog.records
    assert "y.tsv, line 2: '\"a\"' is in quotes" in record.getMessage()
    caplog.clear()
    assert read("tsv", path, dialect=Dialect(quotes=False)) == ['"a"', '"b"'] and not caplog.records


@pytest.mark.parametrize("kwargs", [{"delimiter": ";"}, {"quotes": False}])
def test_csv_whose_quotes_are_characters(kwargs: Any, tmp_path: Path) -> None:
    path = write(tmp_path, 'id;text\n1;a "b" c\n')
    assert read("csv", path, dialect=Dialect(**kwargs)) == ['a "b" c']
