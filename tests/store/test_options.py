"""Storage options as they are given: what is no text is refused, and no value is shown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from embcache import ConfigError
from embcache.store import Location
from embcache.store.options import checked_options

HUSH = "hush-hush"


def test_a_copy() -> None:
    given = {"aws_region": "eu-west-1"}
    options = checked_options(given)
    given["aws_region"] = "changed"
    assert options == {"aws_region": "eu-west-1"}
    assert checked_options(None) == {} == checked_options({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"secret": 5, "other": HUSH}, "The value of 'secret' in storage_options is of type int"),
        ({"secret": HUSH.encode()}, "The value of 'secret' in storage_options is of type bytes"),
        ({"secret": None}, "The value of 'secret' in storage_options is of type NoneType"),
        ({"secret": [HUSH]}, "The value of 'secret' .* Values are strings: write it as one"),
        ({5: HUSH}, "storage_options has the name 5, of type int"),
        ([("secret", HUSH)], "storage_options is of type list, and maps no names"),
        (f"secret={HUSH}", "storage_options is of type str, and maps no names .* Give a dict"),
    ],
    ids=repr,
)
def test_what_is_no_text(given: Any, message: str) -> None:
    for refused in (checked_options, lambda options: Location.of("cache", options)):
        with pytest.raises(ConfigError, match=message) as caught:
            refused(given)
        assert not re.search(HUSH, str(caught.value))
