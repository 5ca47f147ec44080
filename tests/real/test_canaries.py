"""An engine that is started with another model than the one whose name the space has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from embcache import ChangedModelError, VllmEncoderWrapper
from embcache.engine.vllm import VllmEngine
from tests.conftest import encode

pytestmark = pytest.mark.engine


def test_an_exchanged_model_is_refused_before_it_writes(
    real_encoder: Callable[..., VllmEncoderWrapper], model_path: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = real_encoder(cache_path=cache)
    encode(first, ["a text"])
    encode(real_encoder(cache_path=cache), ["one more"])  # the same one is compared, and writes
    other = shutil.copytree(model_path, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    for name in weights:
        if name.endswith("layer.5.output.dense.weight"):
            weights[name] = weights[name] * 1.05
    save_file(weights, other / "model.safetensors", {"format": "pt"})

    def exchanged(model: str, revision: str | None, *rest: Any) -> VllmEngine:
        return VllmEngine(str(other), revision, *rest)

    encoder = real_encoder(cache_path=cache, make_engine=exchanged)
    try:
        with pytest.raises(
            ChangedModelError, match=r"cosine 0\.99\d+ with the cached vector.*5 of 5 canaries"
        ):
            encode(encoder, ["another text"])
    finally:
        encoder.cleanup()
    reader = real_encoder(cache_path=cache, on_miss="raise")
    assert encode(reader, ["a text", "one more"]).shape == (2, 384)
