from __future__ import annotations

import pytest

from embcache.store import lance_errors
from embcache.store.lance_errors import despite_conflicts

GONE = "Dataset at path a.lance/_versions/18446744073709551503.manifest was not found: Not found"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(GONE), 3),  # a compaction removed what was the newest when it was listed
        (RuntimeError("Commit conflict for version 3"), 3),
        (OSError("a.lance/data/x.lance was not found"), 1),
        (OSError("No space left on device"), 1),
    ],
)
def test_what_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int) -> None:
    monkeypatch.setattr(lance_errors.time, "sleep", lambda seconds: None)
    done = 0

    def commit() -> None:
        nonlocal done
        done += 1
        raise error

    with pytest.raises(type(error), match=str(error)[:20]):
        despite_conflicts(commit, 3)
    assert done == tries


def test_a_later_attempt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_errors.time, "sleep", lambda seconds: None)
    errors = [OSError(GONE), OSError(GONE)]

    def commit() -> None:
        if errors:
            raise errors.pop()

    despite_conflicts(commit, 3)
    assert not errors
