from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embcache import ConfigError
from embcache.maps.color import OTHER, PALETTE, REST_COLOR, UNKNOWN, color_points, label

SAME = ["a"] * 3
DIFFERENT = ["a", "b", "a"]


def table(**columns: Any) -> pa.Table:
    numbers = {"n_tokens": pa.int32()}
    return pa.table({k: pa.array(v, numbers.get(k, pa.string())) for k, v in columns.items()})


@pytest.mark.parametrize(
    ("columns", "by"),
    [
        ({"prompt": DIFFERENT, "task": DIFFERENT, "prompt_type": DIFFERENT}, "prompt"),
        ({"prompt": SAME, "task": DIFFERENT, "prompt_type": DIFFERENT}, "task"),
        ({"prompt": SAME, "task": SAME, "prompt_type": DIFFERENT}, "prompt_type"),
        ({"prompt": SAME, "task": SAME, "prompt_type": ["a", None, "a"]}, "prompt_type"),
        ({"prompt": SAME, "task": SAME, "prompt_type": SAME}, "prompt"),
        ({"task": SAME, "prompt_type": DIFFERENT}, "prompt_type"),
        ({"task": SAME, "prompt_type": SAME}, "task"),
    ],
)
def test_the_default(columns: dict[str, Any], by: str) -> None:
    assert color_points(table(**columns)).by == by


def test_groups_are_values_the_most_frequent_first() -> None:
    values = ["", None, "q: ", "q: ", None, "q: "]
    groups = color_points(table(prompt=values)).groups
    assert [g.label for g in groups] == ["'q: '", UNKNOWN, "''"]
    assert [g.rows.tolist() for g in groups] == [[2, 3, 5], [1, 4], [0]]
    assert [g.color for g in groups] == list(PALETTE[:3])


@pytest.mark.parametrize("count", [9, 10, 11, 30])
def test_ten_values_have_a_colour_of_their_own(count: int) -> None:
    values = [f"v{i:02}" for i in range(count) for _ in range(40 - i)]
    groups = color_points(table(task=values), "task").groups
    assert len(groups) == min(count, 11) and len({g.color for g in groups}) == len(groups)
    assert np.array_equal(np.sort(np.concatenate([g.rows for g in groups])), np.arange(len(values)))
    if count > 10:
        assert groups[-1].label == OTHER and groups[-1].color == REST_COLOR
        assert len(groups[-1].rows) == sum(40 - i for i in range(10, count))
    assert groups[9 if count > 9 else 8].label == f"'v{min(count, 10) - 1:02}'"


def test_a_scale() -> None:
    found = color_points(table(n_tokens=[5, None, 500, *[50] * 5]), "n_tokens")
    assert [(g.label, g.rows.tolist()) for g in found.groups] == [(UNKNOWN, [1])]
    assert found.scale is not None and found.scale.rows.tolist() == [0, *range(2, 8)]
    assert found.scale.values.tolist() == [5, 500, *[50] * 5]
    low, high = found.scale.bounds
    assert 5 <= low < 10 and 400 < high <= 500 and found.scale.ticks == [10, 20, 50, 100, 200]


@pytest.mark.parametrize("number", [0, 7])
def test_a_scale_of_one_number(number: int) -> None:
    scale = color_points(table(n_tokens=[number] * 3), "n_tokens").scale
    assert scale is not None and scale.bounds == (max(number, 1), 10 * max(number, 1))


def test_a_narrow_scale_has_ticks() -> None:
    scale = color_points(table(n_tokens=[11, 12, 19]), "n_tokens").scale
    assert scale is not None and scale.ticks == [11, 19]


def test_a_scale_of_nothing() -> None:
    found = color_points(table(n_tokens=[None] * 3), "n_tokens")
    assert found.scale is None and [len(group.rows) for group in found.groups] == [3]


def test_what_cannot_be_coloured_by() -> None:
    columns = table(prompt_type=SAME, task=SAME, n_tokens=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"color='key' is unknown\. Use one of prompt"):
        color_points(columns, "key")
    fix = r"no column `prompt` \(store_text=False .* Colour by one of prompt_type, task, n_tokens"
    with pytest.raises(ConfigError, match=fix):
        color_points(columns, "prompt")


def test_labels() -> None:
    assert label("query: ") == "'query: '" and label(None) == "(unknown)" and label("") == "''"
    assert label("a\n" * 100).count("\\n") == 29 and label("x" * 61).endswith("x…'")
