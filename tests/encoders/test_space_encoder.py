from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embcache import ChangedModelError, ConfigError, ModelNotFoundError, VllmEncoderWrapper
from embcache.encoders.space_encoder import embed_as
from embcache.identity.identity import Identity
from embcache.store import Database, Space
from tests.conftest import encode
from tests.fakes import FakeEngine, fake_vector
from tests.hub import FIRST, SECOND, Hub

Make = Callable[..., VllmEncoderWrapper]


def filled(make_encoder: Make, tmp_path: Path, **kwargs: object) -> Space:
    encode(make_encoder(**kwargs), ["a text"])
    (info,) = Database(tmp_path / "cache", writable=False).spaces()
    return info


def with_identity(info: Space, identity: Identity) -> Space:
    return Space(info.location, replace(info.metadata, identity=identity))


def test_the_same_engine_arguments(
    make_encoder: Make, tmp_path: Path, fake_engines: list[FakeEngine]
) -> None:
    arguments = {
        "max_model_len": 64,
        "pooler_config": {"pooling_type": "CLS"},
        "head_dtype": "float32",
        "seed": 3,
    }
    info = filled(make_encoder, tmp_path, **arguments)
    vector = embed_as(info, "text", "p: ")
    assert (vector == fake_vector("p: text")).all() and vector.shape == (8,)
    first, second = (engine.arguments for engine in fake_engines)
    assert {**first, "enforce_eager": True} == second
    assert not fake_engines[1].started


def test_a_model_that_changed_or_moved(
    make_encoder: Make, tmp_path: Path, tiny_model: Path
) -> None:
    info = filled(make_encoder, tmp_path)
    kept = shutil.copytree(tiny_model, tmp_path / "kept")
    (tiny_model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"is not the model that filled .*: revision '\w+', now "):
        embed_as(info, "text")
    shutil.rmtree(tiny_model)
    with pytest.raises(ModelNotFoundError, match="is neither a directory here"):
        embed_as(info, "text")
    assert len(embed_as(info, "text", model=str(kept))) == 8


def test_speed_may_change_and_nothing_else(
    make_encoder: Make, tmp_path: Path, fake_engines: list[FakeEngine]
) -> None:
    info = filled(make_encoder, tmp_path, max_model_len=64)
    embed_as(info, "text", gpu_memory_utilization=0.3, enforce_eager=False, block_size=32)
    arguments = fake_engines[-1].arguments
    assert arguments["gpu_memory_utilization"] == 0.3 and arguments["enforce_eager"] is False
    assert arguments["block_size"] == 32 and arguments["max_model_len"] == 64
    for name, value in (("max_model_len", 32), ("of_the_future", 1), ("lora_request", "x")):
        with pytest.raises(ConfigError, match=f"{name}={value!r} may change vectors"):
            embed_as(info, "text", **{name: value})


def test_an_adapter_whose_place_is_given(make_encoder: Make, tmp_path: Path) -> None:
    for name in ("adapter", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"name": "{name}"}}')
    info = filled(make_encoder, tmp_path, lora_request=str(tmp_path / "adapter"))
    assert len(embed_as(info, "text", lora_request=str(tmp_path / "adapter"))) == 8
    with pytest.raises(ConfigError, match="is not the model that filled"):
        embed_as(info, "text", lora_request=str(tmp_path / "another"))
    with pytest.raises(ConfigError, match="Give lora_request=, their directory"):
        embed_as(info, "text")


@pytest.mark.parametrize("name", ["lora_request", "tokenizer", "hf_config_path", "of_the_future"])
def test_files_whose_place_is_not_noted(name: str, make_encoder: Make, tmp_path: Path) -> None:
    info = filled(make_encoder, tmp_path)
    identity = info.metadata.identity.with_arguments({name: "local 0123"})
    with pytest.raises(ConfigError, match=f"was filled with {name}=local 0123, a hash"):
        embed_as(with_identity(info, identity), "text")


def test_names_that_were_pinned(make_encoder: Make, tmp_path: Path, hub: Hub) -> None:
    """What the space notes of them is what leads to the same engine again."""
    code = '{"auto_map": {"AutoTokenizer": ["org/code--tok.Slow", null]}}'
    hub.add("org/code", {"tok.py": "x"})
    hub.add("org/tok", {"tokenizer_config.json": code})
    hub.add("org/config", {"config.json": "{}"})
    info = filled(make_encoder, tmp_path, tokenizer="org/tok", hf_config_path="org/config")
    assert info.metadata.identity.arguments == {
        "tokenizer": "org/tok",
        "tokenizer_revision": FIRST,
        "hf_config_path": f"org/config@{FIRST}",
        "tokenizer_code": {"org/code": FIRST},
    }
    assert len(embed_as(info, "text")) == 8
    hub.add("org/code", {"tok.py": "y"}, SECOND)
    with pytest.raises(ConfigError, match="is not the model that filled"):
        embed_as(info, "text")


def test_another_encoder(make_encoder: Make, tmp_path: Path) -> None:
    info = filled(make_encoder, tmp_path)
    identity = replace(info.metadata.identity, engine="mteb Mine")
    with pytest.raises(ConfigError, match="was filled by mteb Mine, not by VllmEncoderWrapper"):
        embed_as(with_identity(info, identity), "text")


def test_an_engine_that_is_not_what_it_was(
    make_encoder: Make, tmp_path: Path, fake_engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query of another model among the cached vectors would find anything."""
    info = filled(make_encoder, tmp_path)
    other = FakeEngine()
    other.changed = 1.0
    monkeypatch.setattr(fake_engines, "_make", lambda *_: other)
    with pytest.raises(ChangedModelError, match="is not the one that filled"):
        embed_as(info, "a query")
    assert len(info.refresh()) == 1
