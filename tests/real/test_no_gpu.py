"""vLLM's build for GPUs on a machine without one (a login node), in whole processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from embcache import VllmCrossEncoderWrapper, VllmEncoderWrapper
from tests.conftest import encode, predict, run_python
from tests.fakes import FakeEngine, FakeScoringEngine

pytestmark = pytest.mark.engine  # no engine gets as far as starting, but vllm is imported

RUN = """
import sys
from tests.conftest import encode, predict
from embcache import EngineError, VllmCrossEncoderWrapper, VllmEncoderWrapper
kind, model, cache = KIND, MODEL, CACHE
if kind == "embed":
    make = lambda cache: VllmEncoderWrapper(model, dtype="auto", cache_path=cache)
    run = lambda encoder, *texts: encode(encoder, list(texts))
else:
    make = lambda cache: VllmCrossEncoderWrapper(model, dtype="auto", cache_path=cache)
    run = lambda encoder, *texts: predict(encoder, list(texts), list(texts))
encoder = make(cache)
run(encoder, "a", "b")
print("hits", encoder.stats.hits, encoder.identity.dtype)
for failing, texts in ((encoder, ("a", "new")), (make(cache + "-empty"), ("a",))):
    try:
        run(failing, *texts)
    except EngineError as error:
        print("said", error)
print("loaded", "vllm.entrypoints.llm" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["embed", "classify"])
def test_what_is_cached_hits_and_a_miss_says_that_a_gpu_is_missing(
    tmp_path: Path, model_path: str, cross_encoder_path: str, vllm_for_gpus: dict[str, str],
    kind: str,
) -> None:  # fmt: skip
    """By itself vLLM takes "auto" for float16 here, and starts until torch stumbles."""
    model = model_path if kind == "embed" else cross_encoder_path
    cache = tmp_path / "cache"
    if kind == "embed":
        encoder = VllmEncoderWrapper(
            model, dtype="float32", cache_path=cache, make_engine=lambda *_: FakeEngine()
        )
        encode(encoder, ["a", "b"])
    else:
        scorer = VllmCrossEncoderWrapper(
            model, dtype="float32", cache_path=cache, make_engine=lambda *_: FakeScoringEngine()
        )
        predict(scorer, ["a", "b"], ["a", "b"])
    head = f"KIND, MODEL, CACHE = {kind!r}, {model!r}, {str(cache)!r}\n"
    out = run_python(head + RUN, **vllm_for_gpus)
    assert "hits 2 float32" in out
    assert out.count("said There are texts to encode, and no GPU: vllm 0.32.0 is a build for") == 2
    assert "a run in which every text is cached needs no GPU" in out
    assert "loaded False" in out  # before anything heavy
