from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from embcache import ModelNotFoundError
from embcache.identity.hub import Commit, pin, read_file
from embcache.identity.machine_memo import Memo
from embcache.identity.weights import ModelSource, resolve_model
from tests.hub import FIRST, MODEL, SECOND, Hub


def resolved(model: str | Path) -> ModelSource:
    return resolve_model(str(model), None, Memo())


def identity(source: ModelSource) -> tuple[str, str]:
    return source.identity_name, source.revision


@pytest.fixture
def snapshot(hub: Hub) -> Path:
    return hub.add("org/name", MODEL)


class TestSnapshotGivenAsADirectory:
    def test_is_the_hubs_commit(self, snapshot: Path) -> None:
        source = resolved(snapshot)
        assert identity(source) == identity(resolved("org/name")) == ("org/name", FIRST)
        assert (source.name, source.load_from) == ("org/name", (str(snapshot), None))

    @pytest.mark.parametrize("how", ["link", "cache linked", "dots", "home"])
    def test_by_any_way(
        self, snapshot: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        way = {
            "link": tmp_path / "link",
            "cache linked": tmp_path / "cache" / snapshot.relative_to(tmp_path / "hub"),
            "dots": snapshot / "1_Pooling" / "..",
            "home": Path("~") / snapshot.relative_to(tmp_path),
        }[how]
        (tmp_path / "link").symlink_to(snapshot)
        (tmp_path / "cache").symlink_to(tmp_path / "hub")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert identity(resolved(way)) == ("org/name", FIRST)

    def test_of_a_name_without_organization(self, hub: Hub) -> None:
        assert identity(resolved(hub.add("gpt2", MODEL))) == ("gpt2", FIRST)

    def test_on_a_file_system_without_links(self, hub: Hub, snapshot: Path) -> None:
        blobs = snapshot.parent.parent / "blobs"
        plain = shutil.copytree(snapshot, snapshot.parent / SECOND)
        shutil.rmtree(snapshot)
        shutil.rmtree(blobs)
        assert identity(resolved(plain)) == ("org/name", SECOND)

    @pytest.mark.parametrize("name", ["snapshots", "models--org--name/snapshots", "x/snapshots"])
    def test_a_directory_that_is_only_called_so(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / name / ("a" * 39 if name.startswith("models") else FIRST)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert resolved(folder).identity_name == "local"


@pytest.mark.parametrize(
    "edit", ["file replaced", "written through the link", "weights", "linked elsewhere", "added"]
)
def test_an_edited_snapshot_is_a_directory_of_its_own(
    snapshot: Path, tmp_path: Path, edit: str, caplog: pytest.LogCaptureFixture
) -> None:
    pooling = snapshot / "1_Pooling" / "config.json"
    if edit == "file replaced":
        pooling.unlink()
        pooling.write_text('{"pooling_mode": "cls"}')
    elif edit == "written through the link":
        pooling.write_text('{"pooling_mode": "cls"}')
    elif edit == "weights":
        (snapshot / "model.safetensors").write_text("other weights")
    elif edit == "linked elsewhere":
        pooling.unlink()
        (tmp_path / "mine.json").write_text("{}")
        pooling.symlink_to(tmp_path / "mine.json")
    else:
        (snapshot / "adapter.bin").write_text("more")
    with caplog.at_level(logging.WARNING):
        source = resolved(snapshot)
    assert source.identity_name == "local" and source.load_from == (str(snapshot), None)
    assert "is not as the hub gave it" in caplog.text


def test_a_new_card_in_a_snapshot_is_no_edit(snapshot: Path) -> None:
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").write_text("notes of mine")
    assert resolved(snapshot).identity_name == "org/name"


def test_the_hubs_name_of_an_edited_snapshot(snapshot: Path) -> None:
    """It is what the engine would load under that name."""
    (snapshot / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    source = resolved("org/name")
    assert identity(source) == identity(resolved(snapshot)) and source.identity_name == "local"
    assert source.load_from == (str(snapshot), None)


def test_a_branch_online_and_offline(hub: Hub) -> None:
    hub.add("org/name", MODEL)
    assert pin("org/name", "main").snapshot is not None
    hub.go_online()
    hub.branches["org/name", "main"] = SECOND
    assert pin("org/name", None) == Commit("org/name", SECOND)
    assert hub.asked == [("org/name", "main")]


def test_no_name_at_all() -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer='\./x' is neither a directory here"):
        pin("./x", None, argument="tokenizer")


def test_the_hint_names_the_right_argument(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer='a/b'.*with tokenizer_revision='<40"):
        pin("a/b", None, argument="tokenizer", revision_argument="tokenizer_revision")


def test_a_file_of_a_commit(hub: Hub) -> None:
    hub.add("org/name", MODEL)
    assert read_file(Commit("org/name", FIRST), "config.json") == MODEL["config.json"]
    assert read_file(Commit("org/name", FIRST), "missing.json") is None  # it may be on the hub
    hub.go_online()
    assert read_file(Commit("org/name", FIRST), "missing.json") == ""


def test_a_file_of_a_hub_out_of_reach(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download would try five times, for half a minute."""
    began = time.monotonic()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    assert read_file(Commit("org/name", FIRST), "config.json") is None
    assert time.monotonic() - began < 10
