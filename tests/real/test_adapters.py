"""LoRA adapters and quantised models, on real vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache import EngineError, MissingTextsError, ModelNotFoundError, VllmEncoderWrapper
from embcache.engine.vllm import VllmEngine
from tests.conftest import encode
from tests.fakes import Engines
from tests.models import save_bert, save_int8, save_llama, save_lora

pytestmark = pytest.mark.engine

TEXTS = ["A text.", "", "Ünïcödé 中文", "A longer text about adapters, of some more tokens. " * 8]
Make = Callable[..., VllmEncoderWrapper]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, decoder: str) -> str:
    return save_lora(tmp_path_factory.mktemp("adapters") / "lora", decoder)


@pytest.fixture
def make(decoder: str, tmp_path: Path) -> Make:
    """Encoders over one cache."""

    def make(model: str = decoder, **kwargs: Any) -> VllmEncoderWrapper:
        kwargs = {"dtype": "float32", "enforce_eager": True, **kwargs}
        # A decoder's KV cache: by default half of the free memory, filled with zeros in 5 s.
        kwargs.setdefault("kv_cache_memory_bytes", 2**26)
        return VllmEncoderWrapper(model, cache_path=tmp_path / "cache", **kwargs)

    return make


def run(encoder: VllmEncoderWrapper) -> np.ndarray:
    vectors = encode(encoder, TEXTS)
    encoder.cleanup()
    return vectors


class TestLora:
    def test_vectors_are_those_of_plain_vllm_and_cached(
        self, make: Make, lora: str, tmp_path: Path
    ) -> None:
        from vllm.lora.request import LoRARequest

        without = run(make())
        engines = Engines(VllmEngine)
        encoder = make(lora_request=lora, make_engine=engines)
        vectors = encode(encoder, TEXTS)
        outputs = engines[0]._llm.encode(
            TEXTS,
            pooling_task="embed",
            tokenization_kwargs={"truncate_prompt_tokens": -1},
            lora_request=LoRARequest("adapter", 1, lora),
            use_tqdm=False,
        )
        encoder.cleanup()
        assert vectors.tobytes() == np.stack([o.outputs.data.numpy() for o in outputs]).tobytes()
        assert np.abs(vectors - without).max() > 0.1
        assert len(list((tmp_path / "cache").glob("*.lance"))) == 2

        by_object = LoRARequest("another name", 7, lora)
        for same in (lora, Path(lora), by_object):
            warm = make(lora_request=same, on_miss="raise", make_engine=engines)
            assert encode(warm, TEXTS).tobytes() == vectors.tobytes()
            assert not engines[-1].started
        plain = make(on_miss="raise")
        assert encode(plain, TEXTS).tobytes() == without.tobytes()

    def test_other_weights_are_another_identity(
        self, make: Make, lora: str, decoder: str, tmp_path: Path
    ) -> None:
        run(make(lora_request=lora))
        other = save_lora(tmp_path / "other", decoder, seed=2)
        assert make(lora_request=lora).identity != make(lora_request=other).identity
        with pytest.raises(MissingTextsError, match="4 of 4 texts"):
            encode(make(lora_request=other, on_miss="raise"), TEXTS)
        again = save_lora(tmp_path / "the same weights, elsewhere", decoder)
        assert len(encode(make(lora_request=again, on_miss="raise"), TEXTS)) == 4

    def test_a_rank_above_vllms_limit(self, make: Make, decoder: str, tmp_path: Path) -> None:
        large = save_lora(tmp_path / "large", decoder, rank=32)
        with pytest.raises(EngineError, match="LoRA rank 32 is greater than max_lora_rank 16"):
            encode(make(lora_request=large), TEXTS)
        vectors = run(make(lora_request=large, max_lora_rank=32))
        warm = make(lora_request=large, on_miss="raise")  # the limit changes no vector
        assert encode(warm, TEXTS).tobytes() == vectors.tobytes()

    def test_no_adapter_in_the_directory(self, make: Make, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no adapter_config\.json\. Give the dir"):
            make(lora_request=tmp_path)

    @pytest.mark.parametrize("name", ["organization/no-such-adapter", "no/such/directory", "oh no"])
    def test_no_such_adapter(self, make: Make, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match=f"lora_request='{name}' is no directory here"):
            make(lora_request=name)

    def test_weights_that_do_not_fit(self, make: Make, lora: str, tmp_path: Path) -> None:
        """An adapter for another architecture."""
        bert = save_bert(tmp_path / "bert")
        with pytest.raises(
            EngineError, match=r"expected target modules in .*'query'.* but received"
        ):
            encode(make(bert, lora_request=lora), TEXTS)


class TestQuantization:
    @pytest.mark.parametrize(
        ("quantization", "dtype", "message"),
        [
            ("fp8", "float32", r"torch\.float32 is not supported for quantization method fp8"),
            ("awq", "float32", "Cannot find the config file for awq"),
            ("gptq", "float32", "Cannot find the config file for gptq"),
            ("modelopt", "float32", "Cannot find the config file for modelopt"),
            ("no such thing", "float32", "Unknown quantization method: no such thing"),
        ],
    )
    def test_what_vllm_refuses_it_says_itself(
        self, quantization: str, dtype: str, message: str, make: Make
    ) -> None:
        encoder = make(dtype=dtype, quantization=quantization)
        assert encoder.identity.arguments["quantization"] == quantization
        with pytest.raises(
            EngineError, match=rf"(?s)could not start .*'quantization': '{quantization}'.*{message}"
        ):
            encode(encoder, TEXTS)

    def test_a_kernel_that_cpu_has_not(self, make: Make) -> None:
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            pytest.skip("fp8 works on a GPU")
        with pytest.raises(EngineError, match=r"'quantization': 'fp8'.*static_scaled_fp8_quant"):
            encode(make(dtype="bfloat16", quantization="fp8"), TEXTS)

    def test_int8_weights_have_a_space_of_their_own(
        self, make: Make, decoder: str, tmp_path: Path
    ) -> None:
        half = {"dtype": "bfloat16"}  # vLLM's int8 kernel for AMX takes no float32
        full = run(make(**half))
        model = save_int8(tmp_path / "int8", decoder)
        small = run(make(model, **half))  # config.json says how it is quantised
        cosines = (small * full).sum(axis=1)
        # 0.99986 with AMX, AVX-512 and AVX2 (0.99988 in float32, as in PyTorch with these weights);
        # 0.9967 where products are cut off (see save_int8).
        assert (small != full).any(axis=1).all() and cosines.min() > 0.999
        named = make(model, quantization="compressed-tensors", **half)
        assert named.identity != make(model, **half).identity != make(**half).identity
        assert run(named).tobytes() == small.tobytes()
        assert len(list((tmp_path / "cache").glob("*.lance"))) == 3
        warm = make(model, quantization="compressed-tensors", on_miss="raise", **half)
        assert encode(warm, TEXTS).tobytes() == small.tobytes()
