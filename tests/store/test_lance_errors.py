from __future__ import annotations

import pytest

from embcache import CacheWriteError
from embcache.store import Location, lance_errors
from embcache.store.lance_errors import READ_FIX, WRITE_FIX, despite_conflicts

GONE = "Dataset at path a.lance/_versions/18446744073709551503.manifest was not found: Not found"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(GONE), 3),  # a compaction removed what was the newest when it was listed
        (RuntimeError("lance error: Not found: /a b/c.lance/_transactions/315-4b.txn, x.rs:1"), 3),
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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "LanceError(IO): No space left on device (os error 28), /x/rust/a/b.rs:254:9",
            r"failed: OSError: No space left on device \(os error 28\)\. Rows committed before are "
            r"safe and the next run goes on from there\. Free some space, or have the quota "
            r"raised\.$",
        ),
        (
            "LanceError(IO): failed to shut down: LanceError(IO): gone, /x/a.rs:1:2, /x/b.rs:3:4",
            r"failed: OSError: failed to shut down: gone\. Rows .* Is the disk full, ",
        ),
    ],
)
def test_what_is_said_names_what_to_do_and_no_place_in_code(said: str, shown: str) -> None:
    with (
        pytest.raises(CacheWriteError, match=shown),
        lance_errors.lance_errors("Writing to", Location.of("cache"), WRITE_FIX),
    ):
        raise OSError(said)


def test_reading_keeps_its_own_advice() -> None:
    with (
        pytest.raises(Exception, match=r"failed: OSError: Not found: a\. If its files are damaged"),
        lance_errors.lance_errors("Reading", Location.of("cache"), READ_FIX),
    ):
        raise OSError("Not found: a, /x/local.rs:273:40")
