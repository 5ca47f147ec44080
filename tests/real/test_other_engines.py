"""The same vectors as from Sentence Transformers and from mteb's own wrapper's engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from embcache import VllmEncoderWrapper
from embcache.engine.vllm import VllmEngine
from tests.conftest import encode
from tests.engine.test_vllm import TEXTS, plain

pytestmark = pytest.mark.engine


def test_equal_to_plain_vllm(
    real_encoder: Callable[..., VllmEncoderWrapper], real_engine: VllmEngine
) -> None:
    vectors = encode(real_encoder(), TEXTS)
    assert vectors.tobytes() == plain(real_engine, TEXTS).tobytes()
    prompted = encode(real_encoder(prompt_dict={"STS13": "query: "}), TEXTS)
    assert prompted.tobytes() == plain(real_engine, ["query: " + t for t in TEXTS]).tobytes()


def test_within_1e_5_of_sentence_transformers(
    real_encoder: Callable[..., VllmEncoderWrapper], model_path: str
) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(model_path, device="cpu").encode(TEXTS, batch_size=8)
    assert np.abs(encode(real_encoder(), TEXTS) - expected).max() < 1e-5
