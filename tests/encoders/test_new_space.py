from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from embcache import CachedEncoder, VllmEncoderWrapper
from tests.conftest import encode
from tests.fakes import FakeModel
from tests.hub import MODEL, Hub

Make = Callable[..., VllmEncoderWrapper]


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embcache.encoders.new_space")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name.endswith("new_space")]


def test_a_folder_whose_content_is_another(
    make_encoder: Make, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode(make_encoder(), ["text"])
    encode(make_encoder(), ["text"])
    assert said(caplog) == []
    (tiny_model / "extra.json").write_text("{}")
    encode(make_encoder(), ["text"])
    (line,) = said(caplog)
    assert "content of the directory: " in line and "(files: +extra.json)" in line
    assert "\n" not in line and "tiny-model--float32--" in line


def test_the_nearest_is_named(make_encoder: Make, caplog: pytest.LogCaptureFixture) -> None:
    for arguments in ({"max_model_len": 64, "dtype": "float16"}, {"max_model_len": 128}):
        encoder = make_encoder(**arguments, make_engine=None, on_miss="raise")
        assert encoder.open_pipeline().space is not None
    assert said(caplog) == []  # nothing was written
    encode(make_encoder(max_model_len=128), ["text"])
    encode(make_encoder(max_model_len=64, seed=1), ["text"])
    assert [line.partition("differs in ")[2] for line in said(caplog)] == [
        "max_model_len: 128 -> 64; seed: not set -> 1."
    ]
    encode(make_encoder(max_model_len=64, seed=2), ["text"])
    assert said(caplog)[1].endswith("differs in seed: 1 -> 2.")


def test_a_space_of_the_directory_that_is_the_hubs_now(
    make_encoder: Make, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = hub.add("org/name", MODEL)
    first = encode(make_encoder(str(snapshot)), ["text"])
    warm = make_encoder("org/name", on_miss="raise")
    assert (encode(warm, ["text"]) == first).all() and said(caplog) == []
    assert warm.open_pipeline().space.name.startswith("org--name--float32--")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text('{"model_type": "other"}')
    encode(make_encoder(str(snapshot)), ["text"])
    assert "model: org/name -> local" in said(caplog)[0]


def test_another_model_is_not_compared(
    make_encoder: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode(make_encoder(), ["text"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    encode(make_encoder(str(other)), ["text"])
    assert said(caplog) == []


def test_a_wrapped_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for revision in ("1", "2"):
        encode(CachedEncoder(FakeModel(revision=revision), tmp_path / "cache"), ["text"])
    (line,) = said(caplog)
    assert line.endswith("differs in revision: 1 -> 2.")
