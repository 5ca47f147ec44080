from __future__ import annotations

import pyarrow as pa
import pytest

from embcache import ConfigError
from embcache.store import RowFilter

ROWS = pa.record_batch(
    {"text": ["one", None, "two", "%"], "prompt": ["p: ", "p: ", None, "q: "], "n": [0, 1, 2, 3]}
)
PAIRS = pa.record_batch(
    {"query": ["one", "b", None], "document": ["a", "one", "one"], "score": [1.0, 2.0, 3.0]}
)


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
    assert RowFilter(prompt, contains).apply(ROWS)["n"].to_pylist() == rows


def test_pairs_and_missing_columns() -> None:
    assert RowFilter(None, "one").apply(PAIRS).num_rows == 3
    assert RowFilter(None, "b").apply(PAIRS).num_rows == 1
    assert RowFilter(None, "b").apply(PAIRS.select(["query", "document"])).num_rows == 1
    assert RowFilter("p: ", None).apply(PAIRS).num_rows == 0  # could not be read
    assert RowFilter(None, "o").apply(ROWS.select(["n"])).num_rows == 0


def test_columns_that_are_needed() -> None:
    assert RowFilter("p: ", "one").columns(ROWS.schema) == ["prompt", "text"]
    assert RowFilter(None, "one").columns(PAIRS.schema) == ["query", "document"]
    assert RowFilter().columns(pa.schema([("n", pa.int32())])) == []
    assert RowFilter("").active and RowFilter(None, "").active and not RowFilter().active
    with pytest.raises(ConfigError, match=r"prompt='p: ': the space has no column `prompt`"):
        RowFilter("p: ").columns(PAIRS.schema)
    with pytest.raises(ConfigError, match=r"contains='o': the space has no texts"):
        RowFilter(None, "o").columns(ROWS.schema.remove(0))
