from __future__ import annotations

import pyarrow as pa
import pytest

from embcache import ConfigError
from embcache.store.rows import check_filters, filter_rows

ROWS = pa.record_batch(
    {"text": ["one", None, "two", "%"], "prompt": ["p: ", "p: ", None, "q: "], "n": [0, 1, 2, 3]}
)
PAIRS = pa.record_batch({"query": ["one", "b", None], "document": ["a", "one", "one"]})


@pytest.mark.parametrize(
    ("prompt", "contains", "rows"),
    [
        (None, None, [0, 1, 2, 3]),
        ("p: ", None, [0, 1]),
        ("p:", None, []),
        (None, "o", [0, 2]),
        (None, "%", [3]),
        ("p: ", "o", [0]),
    ],
)
def test_rows_that_fit(prompt: str | None, contains: str | None, rows: list[int]) -> None:
    assert filter_rows(ROWS, prompt, contains)["n"].to_pylist() == rows


def test_pairs_and_missing_columns() -> None:
    assert filter_rows(PAIRS, None, "one").num_rows == 3
    assert filter_rows(PAIRS, None, "b").num_rows == 1
    assert filter_rows(PAIRS, "p: ", None).num_rows == 0  # could not be read
    assert filter_rows(ROWS.select(["n"]), None, "o").num_rows == 0


def test_columns_that_are_needed() -> None:
    check_filters(ROWS.schema, "p: ", "one")
    check_filters(pa.schema([("n", pa.int32())]), None, None)
    with pytest.raises(ConfigError, match=r"prompt='p: ': the space has no column `prompt`"):
        check_filters(PAIRS.schema, "p: ", None)
    with pytest.raises(ConfigError, match=r"contains='o': the space has no texts"):
        check_filters(ROWS.schema.remove(0), None, "o")
