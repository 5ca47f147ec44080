from __future__ import annotations

import json
from pathlib import Path

import pytest

from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import hash_directory
from tests.identity.test_model_files import write

UNREAD = [
    "eval/similarity_evaluation_results.csv",
    "eval/triplet/x.json",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/config.json",
    "checkpoint-500/rng_state.pth",
    "global_step12/state.pt",
    "runs/Jan01/events.out.tfevents.1.host",
    "wandb/run/output.txt",
    "logs/train.txt",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_3.pth",
    "all_results.json",
    "events.out.tfevents.170.host",
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE-MODEL",
    "NOTICE",
    "README.md",
    "README.rst",
    "map.png",
    "paper.PDF",
    "results.csv",
    "train.log",
    ".gitattributes",
    ".git/HEAD",
    "0_Transformer/training_args.bin",
]
READ = [
    "pytorch_model.bin",
    "weights.pth",
    "optimizer.safetensors",
    "license.json",
    "license.py",
    "vocab.tsv",
    "2_Dense/model.safetensors",
    "evaluation/config.json",
    "checkpoint-best/model.safetensors",
    "original/eval/x.csv.gz",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
    "eval/helper.py",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    files = {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights"}
    return write(tmp_path / "model", files)


def fingerprint(model: Path, **options: bool) -> str:
    return hash_directory(model, Memo(model.parent / "memo.sqlite"), **options)


def changes(model: Path, name: str, **options: bool) -> bool:
    """Whether a new file, or another content of it, changes the hash."""
    before = fingerprint(model, **options)
    write(model, {name: "one"})
    one = fingerprint(model, **options)
    write(model, {name: "two!"})
    two = fingerprint(model, **options)
    assert (before == one) == (one == two)
    return before != one


@pytest.mark.parametrize("name", UNREAD)
def test_left_by_training_or_publishing(model: Path, name: str) -> None:
    assert not changes(model, name, exports=False)


@pytest.mark.parametrize("name", READ)
def test_unknown_means_changed(model: Path, name: str) -> None:
    assert changes(model, name, exports=False)


@pytest.mark.parametrize("name", ["onnx/model.onnx", "openvino/openvino_model.bin"])
def test_another_runtimes_model_counts_where_it_may_be_loaded(model: Path, name: str) -> None:
    assert changes(model, name)


@pytest.mark.parametrize("folder", ["onnx", "eval", "runs/1_Pooling", "./logs/dense"])
def test_a_module_may_lie_anywhere(model: Path, folder: str) -> None:
    modules = [{"path": folder, "type": "sentence_transformers.models.Pooling"}]
    (model / "modules.json").write_text(json.dumps(modules))
    assert changes(model, f"{folder}/config.json", exports=False)


def test_weights_may_lie_in_a_checkpoint(model: Path) -> None:
    index = {"weight_map": {"a": "checkpoint-9/part-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert changes(model, "checkpoint-9/part-1.safetensors")


def test_names_of_weights_do_not_name_those_of_checkpoints(model: Path) -> None:
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not changes(model, "checkpoint-9/part-1.safetensors")


def test_a_configuration_names_a_file(model: Path) -> None:
    (model / "config.json").write_text('{"prompt_file": "prompt.md", "table": "map.csv"}')
    assert changes(model, "prompt.md") and changes(model, "map.csv")


def test_a_vocabulary_names_none(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": {"vocab": [["eval", 1], ["runs", 2]]}}')
    assert not changes(model, "eval/x.txt") and not changes(model, "runs/x.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "modeling.Mine"}}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["tok.Mine", null]}}'),
        ("modules.json", '[{"path": "", "type": "custom_st.Transformer"}]'),
        ("modules.json", '{"modules": []}'),
    ],
)
def test_a_models_own_code_may_read_anything(model: Path, name: str, content: str) -> None:
    write(model, {name: content, "modeling.py": "x"})
    for file in ("eval/table.csv", "onnx/model.onnx", "logo.png", "LICENSE"):
        assert changes(model, file, exports=False), file
    assert not changes(model, "checkpoint-5/optimizer.pt")
    assert not changes(model, "trainer_state.json")


def test_code_names_a_checkpoint(model: Path) -> None:
    files = {
        "config.json": '{"auto_map": {"AutoModel": "modeling.Mine"}}',
        "modeling.py": "TEACHER = 'checkpoint-7/model.safetensors'",
    }
    write(model, files)
    assert changes(model, "checkpoint-7/model.safetensors")
    assert not changes(model, "checkpoint-8/model.safetensors")


def test_a_checkpoint_given_itself_is_the_model(tmp_path: Path) -> None:
    model = write(tmp_path / "checkpoint-500", {"config.json": "{}"})
    assert changes(model, "model.safetensors") and not changes(model, "optimizer.pt")
