from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from embcache import ModelNotFoundError
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import changed_files, hash_directory

POOLING = '{"pooling_mode": "mean"}'


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo(tmp_path / "memo.sqlite")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(
        tmp_path / "model",
        {
            "config.json": "{}",
            "model.safetensors": "weights",
            "1_Pooling/config.json": POOLING,
            "1_Pooling-b/x.txt": "b",
            "vocab.txt": "ä",
            "LIESMICH": "x",
            "README.md": "card",
            ".cache/x": "h",
            "model.bin": "",
        },
    )


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_the_hash_of_format_1_stays(model: Path, memo: Memo) -> None:
    """Computed by the first embcache of format 1: existing spaces are found by it."""
    assert hash_directory(model, memo) == "49e5c850f5379d044c4086f85ef33825"


class TestLinks:
    def test_to_a_folder(self, model: Path, memo: Memo, tmp_path: Path) -> None:
        real = hash_directory(model, memo)
        shutil.move(model / "1_Pooling", tmp_path / "pooling")
        (model / "1_Pooling").symlink_to(tmp_path / "pooling")
        assert hash_directory(model, memo) == real
        (tmp_path / "pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
        assert hash_directory(model, memo) != real

    def test_to_the_whole_model_and_in_a_chain(
        self, model: Path, memo: Memo, tmp_path: Path
    ) -> None:
        (tmp_path / "one").symlink_to(model)
        (tmp_path / "two").symlink_to(tmp_path / "one")
        assert hash_directory(tmp_path / "two", memo) == hash_directory(model, memo)

    def test_two_to_one_folder_are_two_folders(self, model: Path, memo: Memo) -> None:
        shutil.copytree(model / "1_Pooling", model / "2_Pooling")
        copied = hash_directory(model, memo)
        shutil.rmtree(model / "2_Pooling")
        (model / "2_Pooling").symlink_to("1_Pooling")
        assert hash_directory(model, memo) == copied

    @pytest.mark.parametrize("target", [".", "..", "1_Pooling", "../../", "/"])
    def test_back_to_where_it_lies(self, model: Path, memo: Memo, target: str) -> None:
        before = hash_directory(model, memo)
        (model / "1_Pooling" / "again").symlink_to(
            model / target if not target.startswith("/") else target
        )
        assert hash_directory(model, memo) == before

    @pytest.mark.parametrize("target", ["nowhere", "missing.bin"])
    def test_to_nothing(
        self, model: Path, memo: Memo, target: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As ever it is taken as not there, which is what loads; the last one is its own target."""
        before = hash_directory(model, memo)
        (model / "missing.bin").symlink_to(target)
        with caplog.at_level(logging.WARNING):
            assert hash_directory(model, memo) == before
        assert "has links to nothing: missing.bin" in caplog.text
        (model / "nowhere").write_text("here")
        assert hash_directory(model, memo) != before


def test_what_is_no_file_is_not_opened(model: Path, memo: Memo) -> None:
    before = hash_directory(model, memo)
    os.mkfifo(model / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        cwd = Path.cwd()
        os.chdir(model)  # a socket's path must be short
        try:
            one.bind("socket")
        finally:
            os.chdir(cwd)
        assert hash_directory(model, memo) == before


@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "1_Pooling"])
def test_what_cannot_be_read(
    model: Path, memo: Memo, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, everything can be: hence the refusal is made up."""

    def refusing(real: Any) -> Any:
        def function(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self == model / what:
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)

        return function

    (model / "LICENSE").write_text("so that config.json is looked into")
    for name in ("open", "iterdir"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    with pytest.raises(ModelNotFoundError, match=f"{what}' cannot be read .Permission denied"):
        hash_directory(model, memo)


def test_a_change_whose_time_was_set_back(model: Path, memo: Memo) -> None:
    """As rsync --inplace --times leaves it: same size, same inode, same modification time."""
    weights = model / "model.safetensors"
    long_ago = (time.time() - 3600,) * 2
    os.utime(weights, long_ago)
    before = hash_directory(model, memo)
    assert hash_directory(model, memo) == before
    time.sleep(0.02)  # the clock of inodes ticks in milliseconds
    weights.write_text("WEIGHTS")
    os.utime(weights, long_ago)
    assert hash_directory(model, memo) != before


def test_which_files_differ(model: Path, memo: Memo) -> None:
    before = hash_directory(model, memo)
    (model / "model.safetensors").write_text("others")
    (model / "vocab.txt").unlink()
    (model / "new.json").write_text("{}")
    after = hash_directory(model, memo)
    assert changed_files(before, after, memo) == ["+new.json", "-vocab.txt", "model.safetensors"]
    assert changed_files("0" * 32, after, memo) == []
