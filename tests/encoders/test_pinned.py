"""What the vLLM wrappers are started with, from outside: a changed file or name is a miss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mteb.models import SentenceTransformerEncoderWrapper

from embcache import CachedEncoder, EngineError, VllmCrossEncoderWrapper, VllmEncoderWrapper
from tests.conftest import encode, predict
from tests.fakes import FakeEngine
from tests.hub import FIRST, MODEL, SECOND, Hub

Make = Callable[..., VllmEncoderWrapper]


def hits(encoder: VllmEncoderWrapper) -> int:
    encode(encoder, ["text"])
    return encoder.stats.hits


def test_pooling_behind_a_link_to_a_folder(
    make_encoder: Make, tiny_model: Path, tmp_path: Path
) -> None:
    for mode in ("mean", "cls"):
        (tmp_path / mode).mkdir()
        (tmp_path / mode / "config.json").write_text(f'{{"pooling_mode": "{mode}"}}')
    (tiny_model / "1_Pooling").symlink_to(tmp_path / "mean")
    assert hits(make_encoder()) == 0 and hits(make_encoder()) == 1
    (tiny_model / "1_Pooling").unlink()
    (tiny_model / "1_Pooling").symlink_to(tmp_path / "cls")
    assert hits(make_encoder()) == 0


def test_what_training_leaves_is_a_hit(make_encoder: Make, tiny_model: Path) -> None:
    assert hits(make_encoder()) == 0
    for name in ("eval/results.csv", "checkpoint-10/model.safetensors", "runs/x", "onnx/m.onnx"):
        (tiny_model / name).parent.mkdir()
        (tiny_model / name).write_text("x")
    for name in ("trainer_state.json", "LICENSE", "optimizer.pt", "loss.png"):
        (tiny_model / name).write_text("x")
    assert hits(make_encoder()) == 1


def test_a_configuration_from_elsewhere(make_encoder: Make, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    arguments = {"hf_config_path": str(tmp_path / "config")}
    assert hits(make_encoder(**arguments)) == 0 and hits(make_encoder(**arguments)) == 1
    (tmp_path / "config" / "config.json").write_text('{"hidden_act": "relu"}')
    assert hits(make_encoder(**arguments)) == 0


def test_a_tokenizers_branch_moves(
    make_encoder: Make, hub: Hub, fake_engines: list[FakeEngine]
) -> None:
    hub.go_online()
    hub.branches["org/tok", "main"] = FIRST
    assert hits(make_encoder(tokenizer="org/tok")) == 0
    assert hits(make_encoder(tokenizer="org/tok")) == 1
    hub.branches["org/tok", "main"] = SECOND
    assert hits(make_encoder(tokenizer="org/tok")) == 0
    told = [engine.arguments["tokenizer_revision"] for engine in fake_engines]
    assert told == [FIRST, FIRST, SECOND]


def test_a_checkpoint_that_is_overwritten_before_the_engine_starts(
    make_encoder: Make, tiny_model: Path, fake_engines: list[FakeEngine]
) -> None:
    """A training goes on beside the evaluation: the engine would load what the key does not say."""
    encoder = make_encoder()
    (tiny_model / "model.safetensors").write_bytes(b"a step further")
    with pytest.raises(EngineError, match=r"Changed between .*tiny-model"):
        encode(encoder, ["text"])
    assert not fake_engines[0].chunks
    assert hits(make_encoder()) == 0


def test_a_checkpoint_that_is_overwritten_while_the_engine_runs(
    make_encoder: Make, tiny_model: Path
) -> None:
    """What it has loaded is still what was pinned; once freed, it would load something else."""
    encoder = make_encoder()
    encode(encoder, ["one"])
    (tiny_model / "model.safetensors").write_bytes(b"a step further")
    encode(encoder, ["two"])
    encoder.cleanup()
    encode(encoder, ["two"])
    with pytest.raises(EngineError, match="Changed between"):
        encode(encoder, ["three"])


def test_a_reranker_by_its_snapshot(
    make_cross_encoder: Callable[..., VllmCrossEncoderWrapper], hub: Hub
) -> None:
    snapshot = hub.add("org/name", MODEL)
    cold = make_cross_encoder("org/name")
    predict(cold, ["q"], ["d"])
    warm: Any = make_cross_encoder(str(snapshot), on_miss="raise")
    predict(warm, ["q"], ["d"])
    assert warm.identity == cold.identity and warm.stats.hits == 1
    assert warm.mteb_model_meta.name == "org/name"


def test_a_snapshot_that_is_edited_before_the_engine_starts(make_encoder: Make, hub: Hub) -> None:
    snapshot = hub.add("org/name", MODEL)
    encoder = make_encoder("org/name")
    (snapshot / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(EngineError, match=r"Changed between .*config\.json"):
        encode(encoder, ["text"])


def test_registered_prompts_of_a_snapshot(make_encoder: Make, hub: Hub) -> None:
    snapshot = hub.add("intfloat/e5-small", MODEL)
    encoder = make_encoder(str(snapshot), prompt_dict="registered")
    assert encoder.identity.model == "intfloat/e5-small"
    assert encoder.mteb_model_meta.revision == FIRST


@pytest.mark.slow
def test_a_sentence_transformer_in_a_directory(model_path: str, hub: Hub, tmp_path: Path) -> None:
    def identity(folder: Path) -> Any:
        model = SentenceTransformerEncoderWrapper(str(folder))
        return CachedEncoder(model, tmp_path / "cache").identity

    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(model_path).iterdir():
        (folder / path.name).symlink_to(path)
    before = identity(folder)
    assert before.model == "local"
    for name in ("eval/results.csv", "onnx/model.onnx", "checkpoint-1/model.safetensors"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("x")
    assert identity(folder) == before
    (folder / "more.json").write_text("{}")
    assert identity(folder).revision != before.revision
    texts = (path for path in Path(model_path).rglob("*.*") if path.suffix in (".json", ".txt"))
    snapshot = hub.add("org/name", {str(p.relative_to(model_path)): p.read_text() for p in texts})
    (snapshot / "model.safetensors").symlink_to(blob(snapshot, Path(model_path)))
    assert (identity(snapshot).model, identity(snapshot).revision) == ("org/name", FIRST)


def blob(snapshot: Path, model_path: Path) -> Path:
    content = (model_path / "model.safetensors").read_bytes()
    path = snapshot.parent.parent / "blobs" / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path
