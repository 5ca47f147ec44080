from __future__ import annotations

import importlib.machinery
import json
import os
import random
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embcache import EngineError, EngineNotInstalledError, RefusedTextsError, VllmEncoderWrapper
from embcache.engine import vllm as engine_module
from embcache.engine import vllm_tokens
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION, VllmEngine
from embcache.engine.vllm_process import prepare_environment
from embcache.warm import BadRow, TextBatch, Warmer
from tests.conftest import encode
from tests.models import save_llama, without_special_tokens

pytestmark = pytest.mark.engine

TEXTS = [
    "",
    " ",
    "A text.",
    "ALL CAPS and Ünïcödé",
    "emoji 😀👩‍👩‍👧‍👦 and flags 🇩🇪",
    "line\nbreaks\tand\x00nulls",
    "中文和日本語の文章",
    "word " * 10_000,
    "x" * 50_000,
    *(f"sentence number {i} " * (1 + i % 40) for i in range(60)),
]


def plain(engine: VllmEngine, texts: list[str]) -> np.ndarray:
    """What plain `vllm.LLM.encode` gives for texts, as mteb's wrapper calls it."""
    outputs = engine._llm.encode(
        texts,
        pooling_task="embed",
        tokenization_kwargs={"truncate_prompt_tokens": -1},
        use_tqdm=False,
    )
    return np.stack([output.outputs.data.numpy() for output in outputs])


def embed(engine: VllmEngine, texts: list[str]) -> np.ndarray:
    return engine.embed(engine.prepare(texts).prompts).vectors


def without_st_configuration(folder: Path) -> None:
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")


def lower_case_and_short(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": True})
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False  # so that it is vLLM that has to do it
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.fixture(params=[None, without_st_configuration, lower_case_and_short])
def engine(request: pytest.FixtureRequest, model_path: str, tmp_path: Path) -> Iterator[VllmEngine]:
    if request.param is None:
        yield request.getfixturevalue("real_engine")
        return
    folder = tmp_path / "variant"
    shutil.copytree(model_path, folder)
    request.param(folder)
    variant = VllmEngine(
        str(folder),
        None,
        {
            "dtype": "float32",
            "gpu_memory_utilization": MTEB_GPU_MEMORY_UTILIZATION,
            "enforce_eager": True,
        },
    )
    variant.start()
    yield variant
    variant.close()


def test_tokenizing_in_batches_changes_no_bit(engine: VllmEngine) -> None:
    assert embed(engine, TEXTS).tobytes() == plain(engine, TEXTS).tobytes()


def test_order_and_company_change_no_bit(real_engine: VllmEngine) -> None:
    """Sorting by length is safe: a text's vector does not depend on its neighbours."""
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = embed(real_engine, [TEXTS[i] for i in order])
    assert shuffled.tobytes() == plain(real_engine, TEXTS)[order].tobytes()
    alone = np.concatenate([embed(real_engine, [text]) for text in TEXTS[:12]])
    assert np.abs(alone - plain(real_engine, TEXTS[:12])).max() < 1e-6


def test_lengths_are_token_counts_after_truncation(real_engine: VllmEngine) -> None:
    prepared = real_engine.prepare(["", "one", "word " * 10_000])
    assert prepared.lengths.tolist() == [2, 3, 256]
    embedded = real_engine.embed(prepared.prompts)
    assert embedded.n_tokens.tolist() == [2, 3, 256]
    assert embedded.vectors.dtype == np.float32 and embedded.vectors.shape == (3, 384)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Mistral's and multimodal renderers."""
    for module in (engine_module, vllm_tokens):
        monkeypatch.setattr(module, "tokenizes_plainly", lambda renderer: False)


def test_without_batch_tokenization(
    real_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the renderer is not the plain one, texts go to vLLM as they are."""
    one_by_one(monkeypatch)
    prepared = real_engine.prepare(["b", "longer text"])
    assert prepared.prompts == ["b", "longer text"] and prepared.lengths.tolist() == [3, 4]
    embedded = real_engine.embed(prepared.prompts)
    assert embedded.n_tokens.tolist() == [3, 4]
    monkeypatch.undo()
    assert (embedded.vectors == embed(real_engine, ["b", "longer text"])).all()


@pytest.mark.parametrize("batched", [True, False])
def test_all_that_the_tokenizer_refuses_is_told_at_once(
    real_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    if not batched:
        one_by_one(monkeypatch)
    prepared = real_engine.prepare(["fine", "lone \ud800", "fine too", "\udcff"])
    assert [*prepared.refused] == [1, 3]
    for reason in prepared.refused.values():
        assert re.fullmatch(
            r"is refused by the tokenizer \(\w+: .*\)\. Clean or drop the row", reason
        )
    kept = [prepared.prompts[row] for row in (0, 2)]
    assert (real_engine.embed(kept).vectors == plain(real_engine, ["fine", "fine too"])).all()


def test_texts_without_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real vLLM and a tokenizer that adds no special tokens: the rest is encoded, and kept."""
    model = without_special_tokens(save_llama(tmp_path / "model"))
    cache = tmp_path / "cache"
    own: Any = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**26}

    def make(**kwargs: Any) -> VllmEncoderWrapper:
        return VllmEncoderWrapper(model, cache_path=cache, **own, **kwargs)

    texts = ["a", "", "b c", " ", "\u200b", "\x00\x07", "word " * 3000, "\u4e2d\u6587", ""]
    good = [0, 2, 6, 7]
    encoder = make()
    for batched in (True, False):
        if not batched:
            one_by_one(monkeypatch)
        with pytest.raises(RefusedTextsError, match=r"row 1, '', .* has no tokens under") as error:
            encode(encoder, texts)
        assert error.value.rows == [1, 3, 4, 5, 8]
        assert [*encoder._engine.prepare(texts).refused] == error.value.rows
    vectors = encode(make(on_miss="raise"), [texts[row] for row in good])
    engine: Any = encoder._engine
    assert (vectors == plain(engine, [texts[row] for row in good])).all()
    report: list[BadRow] = []
    stats = Warmer(encoder, report=report.append).run(
        [TextBatch(["new", *texts], "x.csv", numbers=range(50_000, 50_010), unit="line")]
    )
    encoder.cleanup()
    assert (stats.encoded, stats.hits, stats.refused) == (1, 4, 5)
    assert report[0].place == "x.csv, line 50002" and report[0].reason.startswith("'' has no token")
    with pytest.raises(RefusedTextsError, match="Nothing is written in this run"):
        encode(make(read_only=True), ["new", ""])


def test_what_it_says_of_itself(real_engine: VllmEngine) -> None:
    assert real_engine.dtype == "float32" and real_engine.version.startswith("vllm")
    assert real_engine.started and real_engine.batch_size == 128


def test_a_second_engine_leaves_random_state_and_the_first_engine_alone(
    model_path: str, real_engine: VllmEngine
) -> None:
    before = embed(real_engine, TEXTS[:3])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    engine = VllmEngine(
        model_path, None, {"dtype": "float32", "enforce_eager": True,
                           "gpu_memory_utilization": MTEB_GPU_MEMORY_UTILIZATION},
    )  # fmt: skip
    engine.start()
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert "LD_PRELOAD" not in os.environ
    engine.close()
    assert not engine.started
    engine.close()
    assert (embed(real_engine, TEXTS[:3]) == before).all()


def test_a_model_that_vllm_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(EngineError, match=r"(?s)vLLM could not start .*no_such_type"):
        VllmEngine(str(tmp_path), None, {"dtype": "float32"}).start()


def test_a_vllm_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("vllm")  # has no LLM
    broken.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", broken)
    with pytest.raises(EngineError, match="is installed and cannot be imported: ImportError"):
        VllmEngine("m", None, {}).start()


def test_no_vllm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "vllm_version", lambda: None)
    engine = VllmEngine("m", None, {})
    with pytest.raises(EngineNotInstalledError, match=r"`pip install vllm`"):
        engine.start()
    assert engine.version == "vllm is not installed"


class TestPlatformArguments:
    def arguments(self, **given: Any) -> dict[str, Any]:
        return VllmEngine("m", None, given)._platform_arguments()

    def test_memory_share_on_cpu(self) -> None:
        share = self.arguments(gpu_memory_utilization=MTEB_GPU_MEMORY_UTILIZATION)
        assert 0 < share["gpu_memory_utilization"] <= 0.5
        given = self.arguments(gpu_memory_utilization=float("0.90"))
        assert given["gpu_memory_utilization"] == 0.9

    def test_eager_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not self.arguments(enforce_eager=False)["enforce_eager"]
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert self.arguments(enforce_eager=False)["enforce_eager"]

    def test_eager_in_a_path_with_spaces(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """torch hands its include folders to the compiler unquoted."""
        monkeypatch.setattr(torch, "__file__", "/home/me/my venv/torch/__init__.py")
        assert self.arguments(enforce_eager=False)["enforce_eager"]
        assert "in a path with spaces" in caplog.text

    @pytest.mark.parametrize(
        ("processor", "dtype", "said"),
        [("AVX2", "float32", True), ("AVX512", "float32", False), ("AVX2", "bfloat16", False)],
    )
    def test_where_another_engine_is_faster(
        self,
        processor: str,
        dtype: str,
        said: bool,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
        with caplog.at_level("INFO", "embcache"):
            self.arguments(dtype=dtype)
        assert ("CachedEncoder(mteb.get_model(" in caplog.text) is said

    def test_additional_config_as_an_object(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """vLLM takes whatever has a hash for the names of compiled models."""
        import vllm

        own = types.SimpleNamespace(compute_hash=lambda: "hash")
        monkeypatch.setattr(vllm, "EngineArgs", types.SimpleNamespace, raising=False)
        monkeypatch.setattr(vllm, "LLM", types.SimpleNamespace, raising=False)
        assert VllmEngine("m", None, {"additional_config": own})._load().additional_config is own

    def test_pooler_config_from_a_dict(self) -> None:
        from vllm.config import PoolerConfig

        arguments = self.arguments(pooler_config={"seq_pooling_type": "CLS"})
        assert isinstance(arguments["pooler_config"], PoolerConfig)
        assert arguments["pooler_config"].seq_pooling_type == "CLS"

    def test_environment_is_the_users_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")
        monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
        prepare_environment()
        assert os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
        assert os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"


def test_ctrl_c_leaves_no_requests_behind(
    real_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call must not get the interrupted one's outputs."""
    expected = embed(real_engine, TEXTS[2:5])
    step = real_engine._llm.llm_engine.step
    calls: list[int] = []

    def interrupted() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(real_engine._llm.llm_engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(real_engine, [f"interrupted {i} " * 50 for i in range(600)])
    assert not real_engine.started
    assert (embed(real_engine, TEXTS[2:5]) == expected).all()


def test_outputs_of_other_texts_are_an_error(
    real_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_engine.start()
    encode = real_engine._llm.encode
    monkeypatch.setattr(real_engine._llm, "encode", lambda *a, **k: encode(*a, **k)[::-1])
    with pytest.raises(EngineError, match="output 0 is of another text"):
        embed(real_engine, ["a", "b"])
    real_engine.start()
    encode = real_engine._llm.encode
    monkeypatch.setattr(real_engine._llm, "encode", lambda *a, **k: encode(*a, **k)[1:])
    with pytest.raises(EngineError, match="1 outputs came back for 2 texts"):
        embed(real_engine, ["a", "b"])
