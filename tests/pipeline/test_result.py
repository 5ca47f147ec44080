from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mteb.models import ModelMeta

from embcache import ConfigError, VllmEncoderWrapper
from embcache.encoders.registry import truncated_meta, warn_if_untrained
from embcache.pipeline.result import Truncation
from tests.conftest import encode

Make = Callable[..., VllmEncoderWrapper]


def unit(count: int, dim: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_vectors_of_length_one_are_normalised_again() -> None:
    full = unit(100)
    short = full[:, :3]
    by_hand = short / np.linalg.norm(short, axis=1, keepdims=True)
    assert Truncation(3)(full).tobytes() == by_hand.tobytes()


def test_others_are_not() -> None:
    full = unit(100) * 1.5
    assert (Truncation(3)(full) == full[:, :3]).all()


def test_what_a_model_does_is_settled_once() -> None:
    """One vector may have any length by chance."""
    cut = Truncation(3)
    cut(unit(100) * 2)
    one = unit(1)
    assert (cut(one) == one[:, :3]).all()


def test_rows_are_cut_alike_in_any_company() -> None:
    full = unit(50)
    together = Truncation(5)(full)
    alone = Truncation(5)
    assert all((alone(full[i : i + 1])[0] == together[i]).all() for i in range(50))


def test_a_vector_that_is_zero_where_it_is_cut() -> None:
    full = np.array([[0, 0, 1]], np.float32)
    assert (Truncation(2)(full) == 0).all()


@pytest.mark.parametrize("dim", [0, -1, 2.5, True, "256"])
def test_no_number_of_components(dim: Any) -> None:
    with pytest.raises(ConfigError, match=r"truncate_dim=.* must be a positive number"):
        Truncation(dim)


def test_full_vectors_are_cached_whatever_is_asked(make_encoder: Make, tmp_path: Path) -> None:
    short = encode(make_encoder(truncate_dim=3), ["a", "b", "a"])
    encoder = make_encoder()
    full = encode(encoder, ["a", "b", "a"])
    assert encoder.stats.encoded == 0 and full.shape == (3, 8)
    assert short.tobytes() == np.ascontiguousarray(full[:, :3]).tobytes()
    other = make_encoder(truncate_dim=5, on_miss="raise")
    assert (encode(other, ["b"]) == full[1, :5]).all()
    assert len(list((tmp_path / "cache").glob("*.lance"))) == 1


def test_without_a_cache(make_encoder: Make) -> None:
    full = encode(make_encoder(cache_path=None), ["a", "b"])
    assert (encode(make_encoder(cache_path=None, truncate_dim=3), ["a", "b"]) == full[:, :3]).all()


def test_no_texts(make_encoder: Make) -> None:
    encode(make_encoder(), ["a"])
    assert encode(make_encoder(truncate_dim=3), []).shape == (0, 3)


def test_more_than_there_are(make_encoder: Make) -> None:
    with pytest.raises(ConfigError, match="truncate_dim=9, and this model's vectors have 8"):
        encode(make_encoder(truncate_dim=9), ["a"])
    assert encode(make_encoder(truncate_dim=8), ["a"]).shape == (1, 8)


def test_mteb_keeps_their_results_apart(make_encoder: Make) -> None:
    full = make_encoder(dtype="auto").mteb_model_meta
    short = make_encoder(dtype="auto", truncate_dim=4).mteb_model_meta
    assert full is not None and short is not None
    assert full.experiment_name is None and short.experiment_name == "embed_dim_4"
    assert short.embed_dim == 4 and full.embed_dim is None


def test_other_experiment_settings_are_kept() -> None:
    meta = ModelMeta.create_empty(overwrites={"experiment_kwargs": {"a": 1}})
    assert truncated_meta(meta, 3).experiment_kwargs == {"a": 1, "embed_dim": 3}
    assert meta.experiment_kwargs == {"a": 1}


def meta(embed_dim: Any) -> ModelMeta:
    return ModelMeta.create_empty(overwrites={"name": "org/model", "embed_dim": embed_dim})


@pytest.mark.parametrize(
    ("embed_dim", "config", "message"),
    [
        (384, {}, "nothing says that org/model was trained for it"),
        (None, {}, "nothing says that org/model was trained for it"),
        ([64, 256], {}, None),
        ([64, 128], {}, "none of the sizes that this model was trained for: 64, 128"),
        (None, {"matryoshka_dimensions": [256]}, None),
        (None, {"matryoshka_dimensions": [32, 64]}, "trained for: 32, 64"),
        (None, {"is_matryoshka": True}, None),
    ],
)
def test_a_warning_for_models_that_were_not_trained_for_it(
    embed_dim: Any, config: dict[str, Any], message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_untrained(256, meta(embed_dim), config)
    assert message in caplog.text if message else not caplog.text


def test_the_encoder_reads_the_models_configuration(
    make_encoder: Make, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_encoder(truncate_dim=4)
    assert "nothing says" in caplog.text
    caplog.clear()
    make_encoder(truncate_dim=4, hf_overrides={"is_matryoshka": True})
    (tiny_model / "config.json").write_text('{"matryoshka_dimensions": [4, 8]}')
    make_encoder(truncate_dim=4)
    assert not caplog.text


def test_what_was_computed_is_kept_even_if_the_cut_is_refused(make_encoder: Make) -> None:
    with pytest.raises(ConfigError, match="vectors have 8"):
        encode(make_encoder(truncate_dim=9), ["a"])
    assert encode(make_encoder(on_miss="raise"), ["a"]).shape == (1, 8)
