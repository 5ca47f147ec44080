from __future__ import annotations

from pathlib import Path

import mteb
import pytest
from mteb.models.model_meta import ScoringFunction

from embcache.encoders.registry import find_model_meta
from embcache.identity.weights import ModelSource


def test_what_was_given_is_kept() -> None:
    meta = mteb.get_model_meta("intfloat/e5-small")
    assert find_model_meta(meta, ModelSource("intfloat/e5-small", "x", "r", False)) is meta


def test_registry_with_the_resolved_revision() -> None:
    registered = mteb.get_model_meta("intfloat/e5-small")
    meta = find_model_meta("intfloat/e5-small", ModelSource("intfloat/e5-small", "x", "r", False))
    assert (meta.name, meta.revision) == ("intfloat/e5-small", "r")
    assert registered.revision != "r" and meta.embed_dim == registered.embed_dim


@pytest.mark.parametrize(
    ("config", "function"),
    [
        (None, ScoringFunction.COSINE),
        ("{}", ScoringFunction.COSINE),
        ('{"similarity_fn_name": null}', ScoringFunction.COSINE),
        ('{"similarity_fn_name": "dot"}', ScoringFunction.DOT_PRODUCT),
    ],
)
def test_a_directory(tmp_path: Path, config: str | None, function: ScoringFunction) -> None:
    if config:
        (tmp_path / "config_sentence_transformers.json").write_text(config)
    meta = find_model_meta(str(tmp_path), ModelSource(str(tmp_path), "local", "hash", True))
    assert meta.name == str(tmp_path) and meta.revision == "hash"
    assert meta.similarity_fn_name is function and meta.modalities == ["text"]


def test_a_hub_model_that_the_registry_does_not_know() -> None:
    meta = find_model_meta("organization/name", ModelSource("organization/name", "x", "r", False))
    assert meta.name == "organization/name" and meta.revision == "r"
