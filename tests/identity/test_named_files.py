from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from embcache import ConfigError
from embcache.identity.named_files import existing_path, with_contents


def pinned(arguments: dict[str, Any]) -> dict[str, Any]:
    return with_contents(arguments, lambda path: path.name)


def test_whatever_the_argument_and_however_deep(tmp_path: Path) -> None:
    (tmp_path / "scales.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    file, folder = str(tmp_path / "scales.json"), str(tmp_path / "folder")
    assert pinned(
        {
            "quantization_param_path": file,
            "hf_overrides": {"vocab": {"file": file}},
            "argument_of_the_future": [1, folder, {"x": file}],
            "model_type": file,
        }
    ) == {
        "quantization_param_path": "local scales.json",
        "hf_overrides": {"vocab": {"file": "local scales.json"}},
        "argument_of_the_future": [1, "local folder", {"x": "local scales.json"}],
        "model_type": "local scales.json",
    }


def test_relative_and_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for way in ("weights", "./weights", "~/weights", "weights/"):
        assert pinned({"new_path": way}) == {"new_path": "local weights"}
        assert existing_path(way, "new_path") == tmp_path / "weights"


@pytest.mark.parametrize(
    "arguments",
    [
        {"quantization": "fp8"},
        {"model_impl": "fp8"},
        {"hf_overrides": {"model_type": "fp8", "architectures": ["fp8"]}},
        {"pooler_config": {"seq_pooling_type": "fp8"}},
    ],
    ids=str,
)
def test_a_word_is_no_folder_that_happens_to_lie_there(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fp8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pinned(arguments) == arguments


@pytest.mark.parametrize("name", ["cache_dir", "torch_profiler_dir", "allowed_local_media_path"])
def test_what_is_written_to_counts_by_its_name(name: str, tmp_path: Path) -> None:
    arguments = {"compilation_config": {name: str(tmp_path)}}
    assert pinned(arguments) == arguments


@pytest.mark.parametrize("text", ["", "org/name", "\0", "x" * 5000, "a\nb", "\udcff", "{{ x }}/y"])
def test_other_texts_stay(text: str) -> None:
    assert pinned({"chat_template": text, "n": 1}) == {"chat_template": text, "n": 1}


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        assert pinned({"x": path}) == {"x": path}


def test_what_cannot_be_looked_into_is_asked_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ConfigError, match="x='/root/secret' may be a file, and /root cannot"):
        existing_path("/root/secret", "x")
