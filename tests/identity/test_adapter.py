from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from embcache import ModelNotFoundError
from embcache.identity.machine_memo import Memo
from embcache.identity.weights import pin_adapter


def adapter(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text('{"r": 8}')
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_identified_by_content_not_by_place(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    other = adapter(tmp_path / "other", b"other weights")
    assert pin_adapter(one, Memo())[0] == str(one)
    assert pin_adapter(one, Memo())[1] == pin_adapter(str(two), Memo())[1]
    assert pin_adapter(one, Memo())[1] != pin_adapter(other, Memo())[1]


def test_a_lora_requests_path_counts(tmp_path: Path) -> None:
    path = adapter(tmp_path / "one")
    request = SimpleNamespace(lora_name="any", lora_int_id=7, lora_path=str(path))
    assert pin_adapter(request, Memo()) == pin_adapter(path, Memo())


def test_a_directory_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_config\.json"):
        pin_adapter(tmp_path, Memo())


@pytest.mark.parametrize("name", ["org/no-such-adapter", "no such/adapter/at all"])
def test_no_such_adapter(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"lora_request='{name}' is no directory here"):
        pin_adapter(name, Memo())
