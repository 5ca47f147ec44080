from __future__ import annotations

import pytest

from embcache.errors import CacheError
from embcache.store import watch


def test_what_a_process_died_of_is_refused() -> None:
    said: list[str] = []
    try:
        watch.start(said.append, ["b", "c"])
        watch.reading("a")
        with pytest.raises(CacheError, match="b ends the process that reads it"):
            watch.reading("b")
        watch.changed("b")
        watch.reading("b")
    finally:
        watch.start(lambda what: None, [])
    watch.reading("c")
    assert said == ["a", "b"]
