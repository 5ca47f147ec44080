from __future__ import annotations

from pathlib import Path

from embcache.identity.difference import differences, in_words, same_model
from embcache.identity.identity import Identity
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import hash_directory
from tests.hub import MODEL, Hub
from tests.identity.test_model_files import write


def test_each_value_by_its_name() -> None:
    old = Identity("org/name", "1" * 40, "float16", {"max_model_len": 128, "x": {"a": 1, "b": 2}})
    new = Identity("org/name", "2" * 40, "float32", {"seed": 3, "x": {"a": 1, "b": "c"}})
    assert differences(old, new, Memo()) == [
        f"revision: {'1' * 40} -> {'2' * 40}",
        "dtype: float16 -> float32",
        "max_model_len: 128 -> not set",
        "x.b: 2 -> c",
        "seed: not set -> 3",
    ]
    assert differences(old, old, Memo()) == []


def test_files_of_directories(tmp_path: Path) -> None:
    model = write(tmp_path / "model", {"config.json": "{}", "model.safetensors": "weights"})
    old = hash_directory(model, Memo())
    write(model, {"config.json": '{"a": 1}', "adapter.bin": "x"})
    new = hash_directory(model, Memo())
    found = differences(Identity("local", old, "float32"), Identity("local", new, "x"), Memo())
    assert found[0] == (
        f"content of the directory: {old} -> {new} (files: +adapter.bin, config.json)"
    )
    arguments = [{"tokenizer": f"local {one}"} for one in (old, new)]
    pair = [Identity("m", "r", "float32", one) for one in arguments]
    assert differences(pair[0], pair[1], Memo()) == [
        f"tokenizer: local {old} -> local {new} (files: +adapter.bin, config.json)"
    ]


def test_many_are_counted() -> None:
    assert in_words(["a", "b"]) == "a; b"
    assert in_words([str(n) for n in range(11)]) == "0; 1; 2; 3; 4; 5; 6; 7; and 3 more"


def test_one_model_under_two_names(tmp_path: Path, hub: Hub) -> None:
    model = write(tmp_path / "model", {"config.json": "{}"})
    (tmp_path / "link").symlink_to(model)
    assert same_model(str(model), str(tmp_path / "link"))
    assert same_model("org/name", str(hub.add("org/name", MODEL)))
    assert not same_model("org/name", "org/other") and not same_model(str(model), str(tmp_path))
