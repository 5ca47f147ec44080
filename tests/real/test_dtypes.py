"""What a dtype does to vectors, on real vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embcache import Cache, MissingTextsError, NonFiniteError, VllmEncoderWrapper
from embcache.engine.vllm import VllmEngine
from tests.conftest import encode
from tests.fakes import Engines
from tests.models import save_bert, save_overflowing_bert

pytestmark = pytest.mark.engine

TEXTS = ["The longest of these texts, which goes first.", "A text.", "", "Ünïcödé 中文"]


@pytest.mark.parametrize(
    ("weights", "auto"),
    [
        (torch.float32, "float16"),  # vLLM's rule for pooling models
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
    ],
    ids=str,
)
def test_auto_without_an_engine_is_what_the_engine_chose(
    weights: torch.dtype, auto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = save_bert(tmp_path / "model", weights), tmp_path / "cache"
    cold = VllmEncoderWrapper(model, cache_path=cache, enforce_eager=True)
    vectors = encode(cold, TEXTS)
    cold.cleanup()
    assert cold.identity.dtype == auto
    for memory in ("same", "none"):
        if memory == "none":
            if weights is torch.float32:
                break  # tests/test_dtype.py asks that, and each time costs vLLM's import
            # vLLM has to be asked, in a process of its own.
            monkeypatch.setenv("EMBCACHE_HOME", str(tmp_path / "another home"))
        engines = Engines(VllmEngine)
        warm = VllmEncoderWrapper(model, cache_path=cache, on_miss="raise", make_engine=engines)
        assert encode(warm, TEXTS).tobytes() == vectors.tobytes()
        assert warm.identity.dtype == auto and not engines[0].started


def test_a_model_too_large_for_float16(tmp_path: Path) -> None:
    model, cache = save_overflowing_bert(tmp_path / "model"), tmp_path / "cache"

    def encoder(dtype: str, **kwargs: str) -> VllmEncoderWrapper:
        return VllmEncoderWrapper(
            model, cache_path=cache, dtype=dtype, enforce_eager=True, **kwargs
        )

    half = encoder("float16")
    with pytest.raises(
        NonFiniteError,
        match=r"NaN or infinity for 4 of 4 texts, the first in row 0: .*The longest.*"
        r"dtype='float16' cannot hold .* Use dtype='bfloat16' or dtype='float32'\. Nothing",
    ):
        encode(half, TEXTS)
    half.cleanup()
    with pytest.raises(MissingTextsError, match="4 of 4 texts are not cached"):
        encode(encoder("float16", on_miss="raise"), TEXTS)
    for way_out in ("float32", "bfloat16"):
        full = encoder(way_out)
        vectors = encode(full, TEXTS)
        full.cleanup()
        assert np.isfinite(vectors).all() and full.stats.encoded == 4
        warm = encoder(way_out, on_miss="raise")
        assert encode(warm, TEXTS).tobytes() == vectors.tobytes()


def test_float32_and_bfloat16_agree_in_two_spaces(
    real_encoder: Callable[..., VllmEncoderWrapper], model_path: str, tmp_path: Path
) -> None:
    texts = [*TEXTS, *(f"Sentence {i} about the number {i * i}." for i in range(40))]
    single = encode(real_encoder(), texts)
    short = VllmEncoderWrapper(
        model_path, cache_path=tmp_path / "cache", dtype="bfloat16", enforce_eager=True
    )
    half = encode(short, texts)
    short.cleanup()
    assert short.stats.hits == 0 and (single != half).any()
    cache = Cache(tmp_path / "cache")
    found = cache["float32"].compare(cache["bfloat16"])
    assert (found.shared, found.only_a, found.only_b) == (len(texts), 0, 0)
    assert 0.99 < found.cosine_min <= found.cosine_mean < 1
    cosines = (single * half).sum(axis=1) / np.linalg.norm(half, axis=1)
    assert found.cosine_min == pytest.approx(cosines.min(), abs=1e-5)
