from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embcache.store import Space
from embcache.store.manifests import fingerprint_in, manifest, manifests, newest_committed, versions
from tests.spaces import folder, make_rows

Open = Callable[..., Space]


def test_the_name_is_lances(open_space: Open) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    assert list(versions(folder(space))) == [2, 1]
    assert versions(folder(space))[2] == manifest(folder(space), 2)


def test_old_names_newest_first(tmp_path: Path) -> None:
    (tmp_path / "_versions").mkdir()
    for name in ("3", "12", "d77", "latest"):
        (tmp_path / "_versions" / f"{name}.manifest").touch()
    assert list(versions(tmp_path)) == [12, 3] and versions(tmp_path / "nowhere") == {}


def test_a_name_that_fits_no_version_comes_first(tmp_path: Path) -> None:
    (tmp_path / "_versions").mkdir()
    names = [str(2**64 - 2), str(2**64 - 13), "7", "9" * 20]
    for name in names:
        (tmp_path / "_versions" / f"{name}.manifest").touch()
    found = manifests(tmp_path)
    assert [number for _, number in found] == [None, None, 12, 1]
    assert [path.stem for path, _ in found[2:]] == [names[1], names[0]]


def test_fingerprints_in_names() -> None:
    assert fingerprint_in("a--b--float32--0123456789") == "0123456789"
    assert fingerprint_in("_canaries") is None and fingerprint_in("a--float32--01234") is None


def test_the_newest_version_that_something_speaks_of(tmp_path: Path) -> None:
    assert newest_committed(tmp_path) == 0
    for name in ("_versions", "_transactions"):
        (tmp_path / name).mkdir()
    hint = tmp_path / "_versions" / "latest_version_hint.json"
    for damaged in (b"", b"[]", b'{"version": "x"}', b"\xff"):
        hint.write_bytes(damaged)
        assert newest_committed(tmp_path) == 0
    hint.write_text('{"version":7}')
    assert newest_committed(tmp_path) == 7
    for name in ("9-a-b.txn", "x.txn", "-1.txn", "12"):
        (tmp_path / "_transactions" / name).touch()
    assert newest_committed(tmp_path) == 7  # it may still be on its way
    os.utime(tmp_path / "_transactions" / "9-a-b.txn", (1, 1))
    assert newest_committed(tmp_path) == 10


@pytest.mark.parametrize(
    "hint",
    [
        *(b'{"version": Infinity}', b'{"version": 1e999}', b'{"version": {}}'),
        *(b'{"version": ' + b"9" * 5000 + b"}", b"[" * 10**6, b"[9]", b"\xff"),
    ],
)
def test_a_hint_that_somebody_made_up_says_nothing(hint: bytes, tmp_path: Path) -> None:
    (tmp_path / "_versions").mkdir()
    (tmp_path / "_versions" / "latest_version_hint.json").write_bytes(hint)
    assert newest_committed(tmp_path) == 0
