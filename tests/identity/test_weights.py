from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from embcache import ModelNotFoundError
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import hash_directory
from embcache.identity.weights import resolve_model
from tests.conftest import run_python

COMMIT = "ffb93f3bd4047442299a41ebb6fa998a38507c52"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    return folder


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo(tmp_path / "memo.sqlite")


def revision(model: Path, memo: Memo) -> str:
    return resolve_model(str(model), None, memo).revision


def test_a_directory_is_its_content(model: Path, memo: Memo, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "under another name")
    assert revision(copy, memo) == revision(model, memo)
    assert resolve_model(str(model), None, memo).identity_name == "local"


def test_a_link_is_its_target(model: Path, memo: Memo, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for path in model.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    shutil.copytree(model / "1_Pooling", tmp_path / "linked2")
    (tmp_path / "linked" / "1_Pooling").unlink()
    shutil.move(tmp_path / "linked2", tmp_path / "linked" / "1_Pooling")
    assert revision(tmp_path / "linked", memo) == revision(model, memo)


@pytest.mark.parametrize("change", ["content", "same size", "new file", "renamed", "removed"])
def test_a_checkpoint_overwritten_in_place(model: Path, memo: Memo, change: str) -> None:
    before = revision(model, memo)
    weights = model / "model.safetensors"
    if change == "content":
        weights.write_bytes(b"v" * 999)
    elif change == "same size":
        weights.write_bytes(b"v" * 1000)
    elif change == "new file":
        (model / "adapter.bin").write_bytes(b"")
    elif change == "renamed":
        weights.rename(model / "model2.safetensors")
    else:
        weights.unlink()
    assert revision(model, memo) != before


def test_notes_and_hidden_files_change_nothing(model: Path, memo: Memo) -> None:
    before = revision(model, memo)
    (model / "README.md").write_text("card")
    (model / ".cache").mkdir()
    (model / ".cache" / "download.metadata").write_text("time")
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "x.pyc").write_bytes(b"")
    assert revision(model, memo) == before


def test_files_are_hashed_once_per_version(
    model: Path, memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in model.rglob("*.*"):
        os.utime(path, (time.time() - 60,) * 2)
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: (opened.append(self.name), real(self, *a, **k))[1]
    )
    first = hash_directory(model, memo)
    assert sorted(opened) == ["config.json", "config.json", "model.safetensors"]
    opened.clear()
    assert hash_directory(model, Memo(memo._path)) == first and not opened
    os.utime(model / "model.safetensors", (time.time() - 30,) * 2)
    assert hash_directory(model, memo) == first and opened == ["model.safetensors"]


def test_a_file_written_a_moment_ago_is_not_remembered(model: Path, memo: Memo) -> None:
    """Same size, same inode and, on a coarse clock, same time: only reading tells."""
    weights = model / "model.safetensors"
    before = revision(model, memo)
    stat = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"v")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert revision(model, memo) != before


def test_a_full_commit_is_taken_as_it_is() -> None:
    source = resolve_model("intfloat/e5-small", COMMIT)
    assert source.revision == COMMIT and source.load_from == ("intfloat/e5-small", COMMIT)


@pytest.mark.parametrize("offline", ["1", "0"])
def test_offline_from_the_local_hub_cache(tmp_path: Path, offline: str) -> None:
    """With HF_HUB_OFFLINE, and without it where the hub cannot be reached."""
    folder = tmp_path / "hub" / "models--organization--name"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    out = run_python(
        "from embcache.identity.weights import resolve_model\n"
        "source = resolve_model('organization/name')\n"
        "print(source.revision, source.identity_name, *source.load_from)",
        HF_HUB_OFFLINE=offline,
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_ENDPOINT="http://127.0.0.1:1",  # nobody listens there
    )
    assert out.split() == [COMMIT, "organization/name", str(snapshot), "None"]


def test_the_hub_resolves_a_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Info:
        sha = COMMIT

    def model_info(self: Any, name: str, **kwargs: Any) -> Info:
        asked.append((name, kwargs["revision"]))
        return Info()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    assert resolve_model("organization/name", "v1.0").revision == COMMIT
    assert asked == [("organization/name", "v1.0")]


def test_unknown_model_offline() -> None:
    with pytest.raises(ModelNotFoundError, match=r"(?s)model='no/such'.*HF_HUB_OFFLINE is set"):
        resolve_model("no/such")


def test_unknown_model_online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        import httpx2 as httpx
    except ModuleNotFoundError:  # what huggingface_hub 1 is built on
        import httpx

    def model_info(self: Any, name: str, **kwargs: Any) -> None:
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(ModelNotFoundError, match="the hub has no such model or revision"):
        resolve_model("no/such")


@pytest.mark.parametrize("name", ["./missing", "/no/such/dir", "a/b/c", "", "with space"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"(neither a directory here|without a config)"):
        resolve_model(name)


def test_a_file_and_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve_model(str(tmp_path / "model.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"without a config\.json"):
        resolve_model(str(tmp_path / "empty"))
