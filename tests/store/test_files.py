from __future__ import annotations

from pathlib import Path

import pytest

from embcache import CacheError, ConfigError
from embcache.store.files import check_new, new_files


def test_files_appear_together_and_complete(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    with new_files(files) as temporary:
        for file in temporary:
            file.write_text("x")
        assert not any(file.exists() for file in files)
    assert sorted(tmp_path.iterdir()) == files


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="a bug"), new_files([tmp_path / "a"]) as (temporary,):
        temporary.write_text("half")
        raise ValueError("a bug")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(CacheError, match="cannot be written"), new_files([tmp_path / "no" / "a"]):
        (tmp_path / "no" / "a").write_text("")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    with pytest.raises(ConfigError, match=r"b exists.*overwrite=True to replace it"):
        check_new([tmp_path / "a", tmp_path / "b"], False)
    check_new([tmp_path / "a", tmp_path / "b"], True)
