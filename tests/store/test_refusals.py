from __future__ import annotations

import errno

import pytest

from embcache.store.refusals import error_number, way_out


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (OSError("LanceError(IO): No space left on device (os error 28), /a/b.rs:1:2"), 28),
        (RuntimeError("x: Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (OSError("Not found: a.lance/data/b.lance, /a/local.rs:273:40"), errno.ENOENT),
        (ValueError("the index was Not found"), None),
    ],
)
def test_the_systems_number(error: Exception, number: int | None) -> None:
    assert error_number(error) == number


def test_what_to_do() -> None:
    assert way_out(errno.EDQUOT) == "Free some space, or have the quota raised."
    assert "ulimit" in str(way_out(errno.EMFILE)) and "chmod" in str(way_out(errno.EPERM))
    assert way_out(None) is None and way_out(errno.EDOM) is None
