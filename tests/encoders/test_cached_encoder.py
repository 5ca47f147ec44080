from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lancedb
import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from mteb.mocks.mock_run import ALL_MOCK_TASK_TEST_GRID
from mteb.mocks.mock_tasks import MockClassificationTask
from mteb.models import CompressionWrapper, ModelMeta, SentenceTransformerEncoderWrapper
from mteb.types import OutputDType, PromptType
from PIL import Image
from tokenizers.normalizers import Replace
from torch.utils.data import DataLoader

from embcache import (
    CachedEncoder,
    CacheError,
    ChangedModelError,
    ConfigError,
    EngineError,
    NonFiniteError,
    VllmEncoderWrapper,
)
from embcache.pipeline.canary_texts import TEXTS
from embcache.store import Database, Space
from tests.conftest import encode, loader
from tests.fakes import FakeModel, fake_vector
from tests.object_store import Remote
from tests.spaces import no_hard_links

Make = Callable[..., CachedEncoder]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(cache: Path) -> Make:
    def make_(model: Any = None, **kwargs: Any) -> CachedEncoder:
        return CachedEncoder(model or FakeModel(), **{"cache_path": cache, **kwargs})

    return make_


@pytest.fixture
def minilm(model_path: str) -> SentenceTransformerEncoderWrapper:
    return SentenceTransformerEncoderWrapper(model_path, device="cpu")


def tables(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.lance"))


def hits(encoder: CachedEncoder, texts: list[str], **kwargs: Any) -> int:
    encode(encoder, texts, **kwargs)
    return encoder.stats.hits


# What the wrapped model is asked


def test_only_what_is_missing_is_sent_once_each(make: Make) -> None:
    model = FakeModel()
    encode(make(model), ["a", "b", "a"])
    encode(make(model), ["c", "b", "c"])
    assert sorted(model.encoded) == ["a", "b", "c"]


def test_results_are_those_of_the_model(make: Make) -> None:
    model = FakeModel()
    texts = ["x " * (i % 13) + str(i) for i in range(300)]
    expected = np.stack([fake_vector(f"{PromptType.query}|{text}") for text in texts])
    assert (encode(make(model), texts, prompt_type=PromptType.query) == expected).all()


def test_arguments_are_passed_on(make: Make) -> None:
    model = FakeModel()
    encode(make(model), ["a"], batch_size=7, normalize_embeddings=True)
    assert model.kwargs == [
        {
            "hf_split": "test",
            "hf_subset": "default",
            "batch_size": 7,
            "normalize_embeddings": True,
            "show_progress_bar": False,
        }
    ]


def test_the_model_sees_every_column_and_the_collate_function(make: Make) -> None:
    seen: list[Any] = []

    class Reading(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            batches = list(inputs)
            seen.extend(batches)
            return super().encode(batches, **kwargs)

    inputs = loader(["a", "b"], title=["A", "B"], id=["1", "2"])
    encode(make(Reading()), inputs)
    canaries, batch = seen  # those come first, in the same columns
    assert (batch["text"], batch["title"], batch["id"]) == (["a", "b"], ["A", "B"], ["1", "2"])
    assert canaries.keys() == batch.keys()
    assert canaries["text"] == list(TEXTS) and set(canaries["title"]) == {""}


def test_inputs_that_are_no_dataset(make: Make) -> None:
    batches: Any = ({"text": ["a", "b"]}, {"text": ["c"]})
    model = FakeModel()
    vectors = encode(make(model), batches)
    assert (vectors == np.stack([fake_vector(f"None|{t}") for t in "abc"])).all()
    assert sorted(model.encoded) == ["a", "b", "c"]


def test_a_shuffling_loader_keeps_its_order(make: Make) -> None:
    texts = [str(i) for i in range(40)]
    seed = torch.Generator()
    dataset: Any = Dataset.from_dict({"text": texts})
    inputs = DataLoader(dataset, batch_size=8, shuffle=True, generator=seed.manual_seed(3))
    vectors = encode(make(), inputs)
    seed.manual_seed(3)
    expected = [text for batch in inputs for text in batch["text"]]
    assert expected != texts
    assert (vectors == np.stack([fake_vector(f"None|{text}") for text in expected])).all()


@pytest.mark.parametrize(
    "convert",
    [
        torch.tensor,
        lambda v: torch.tensor(v).bfloat16(),
        lambda v: torch.tensor(v).half(),
        lambda v: v.astype(np.float64),
        list,
        lambda v: [torch.tensor(row) for row in v],
        lambda v: (v * 10).astype(np.int8),
    ],
    ids=["tensor", "bfloat16", "float16", "float64", "arrays", "tensors", "int8"],
)
def test_whatever_array_it_returns(make: Make, convert: Callable[[Any], Any]) -> None:
    class Converting(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            return convert(super().encode(inputs, **kwargs))

    vectors = encode(make(Converting()), ["a", "b"])
    expected = convert(np.stack([fake_vector(f"None|{t}") for t in "ab"]))
    if isinstance(expected, list):
        expected = np.stack([np.asarray(row) for row in expected])
    if isinstance(expected, torch.Tensor):
        expected = expected.float().numpy()
    assert vectors.dtype == np.float32 and (vectors == expected.astype(np.float32)).all()


@pytest.mark.parametrize(
    "returned",
    [
        [np.zeros((3, 8)), np.zeros((5, 8))],
        np.zeros((1, 8), np.float32),
        np.zeros((2, 3, 8), np.float32),
        torch.zeros(2, 8).to_sparse(),
        np.array([["a"], ["b"]]),
        None,
    ],
    ids=["multi-vector", "too few", "token level", "sparse", "strings", "nothing"],
)
def test_what_is_not_one_vector_a_text_is_refused(make: Make, returned: Any) -> None:
    class Odd(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            return returned

    with pytest.raises(EngineError, match=r"Odd\.encode returned .* for 2 texts"):
        encode(make(Odd()), ["a", "b"])


def test_nan_is_never_written(make: Make, cache: Path) -> None:
    class Broken(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            return super().encode(inputs, **kwargs) * np.nan

    with pytest.raises(NonFiniteError, match="NaN or infinity for 1 of 1 texts"):
        encode(make(Broken()), ["a"])
    assert tables(cache) == []


def test_errors_of_the_model_come_through(make: Make) -> None:
    class Failing(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            raise RuntimeError("the endpoint is down")

    with pytest.raises(RuntimeError, match="the endpoint is down"):
        encode(make(Failing()), ["a"])


# What makes a hit


def test_name_revision_and_settings_are_in_the_identity(make: Make) -> None:
    encode(make(), ["a"])
    assert hits(make(), ["a"]) == 1
    for other in (
        FakeModel("org/other"),
        FakeModel(revision="2"),
        FakeModel(experiment_kwargs={"embed_dim": 4}),
        FakeModel(experiment_kwargs={"embed_dim": 5}),
    ):
        assert hits(make(other), ["a"]) == 0
    assert hits(make(identity={"server": 1}), ["a"]) == 0
    assert hits(make(identity={"server": 2}), ["a"]) == 0
    assert hits(make(identity={"server": 1}), ["a"]) == 1


def test_encode_kwargs_that_change_vectors_are_in_the_identity(make: Make) -> None:
    encoder = make()
    encode(encoder, ["a"])
    assert hits(encoder, ["a"], precision="int8") == 0
    assert hits(encoder, ["a"], precision="float32") == 1
    assert hits(encoder, ["a"], normalize_embeddings=True) == 0
    assert hits(encoder, ["a"], batch_size=3, show_progress_bar=False) == 1
    assert hits(make(), ["a"], precision="int8") == 1


def test_unknown_prompts_are_kept_apart_by_the_circumstances(make: Make) -> None:
    """FakeModel's own encode could do anything with them."""
    encoder = make()
    sts12 = mteb.get_task("STS12").metadata
    encode(encoder, ["a"])
    assert hits(encoder, ["a"], task_metadata=sts12) == 0
    assert hits(encoder, ["a"], prompt_type=PromptType.query) == 0
    assert hits(encoder, ["a"]) == 1
    arguments = {"task_metadata": sts12, "hf_split": "test"}
    encoder.encode(loader(["a"]), hf_subset="other", show_progress_bar=False, **arguments)
    assert encoder.stats.hits == 0


def test_other_text_columns_are_kept_apart_for_unknown_models(make: Make) -> None:
    encoder = make()
    assert encode(encoder, loader(["a"], title=["T"])) is not None
    for columns, found in (({"title": ["U"]}, 0), ({}, 0), ({"title": ["T"], "id": ["9"]}, 1)):
        encode(encoder, loader(["a"], **columns))
        assert encoder.stats.hits == found, columns


def test_applied_prompt_shares_texts_between_tasks(make: Make) -> None:
    model = FakeModel()
    encoder = make(model, applied_prompt=lambda task, prompt_type: "query: ")
    encode(encoder, ["a"])
    assert hits(encoder, ["a"], task_metadata=mteb.get_task("STS12").metadata) == 1
    other = make(model, applied_prompt=lambda task, prompt_type: "")
    assert hits(other, ["a"]) == 0
    with pytest.raises(ConfigError, match="applied_prompt returned None for task STS13"):
        encode(make(model, applied_prompt=lambda *_: None), ["a"])


def test_text_prompt_and_task_are_recorded(make: Make, cache: Path) -> None:
    encode(make(), ["a"], prompt_type=PromptType.query)
    encode(make(applied_prompt=lambda *_: "p: "), ["a"])
    rows = []
    for name in tables(cache):
        rows += lancedb.connect(str(cache)).open_table(name[:-6]).to_arrow().to_pylist()
    found = sorted(
        (r["prompt"] or "", r["text"], r["task"], r["prompt_type"], r["n_tokens"]) for r in rows
    )
    assert found == [("", "a", "STS13", "query", None), ("p: ", "a", "STS13", None, None)]


# What is refused


def test_neither_name_nor_revision(make: Make) -> None:
    nameless = FakeModel(None, None)
    assert nameless.mteb_model_meta is not None
    assert nameless.mteb_model_meta.name == "no_model_name/available"
    with pytest.raises(ConfigError, match=r"neither name nor revision .* identity=\{"):
        make(nameless)
    encoder = make(nameless, identity={"model": "mine"})
    assert hits(encoder, ["a"]) == 0 and hits(encoder, ["a"]) == 1


def test_no_meta_at_all(make: Make) -> None:
    class Bare:
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            return np.ones((sum(len(batch["text"]) for batch in inputs), 4), np.float32)

    with pytest.raises(ConfigError, match="Bare has neither name nor revision"):
        make(Bare())
    encoder = make(Bare(), identity={"model": "bare"})
    assert encode(encoder, ["a", "b"]).shape == (2, 4)
    assert isinstance(encoder.mteb_model_meta, ModelMeta)
    task = MockClassificationTask()  # which asks for nothing but vectors
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    assert result.task_results[0].get_score() >= 0 and encoder.stats.encoded > 0


def test_a_name_without_revision_is_warned_about(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make(FakeModel(revision=None))
    assert "org/fake has no revision" in caplog.text and "identity={" in caplog.text
    caplog.clear()
    make(FakeModel(revision=None), identity={"revision": "today"})
    assert "no revision" not in caplog.text


def test_compression_goes_outside(make: Make, minilm: SentenceTransformerEncoderWrapper) -> None:
    """Its integers depend on the other texts of the call."""
    meta = minilm.mteb_model_meta
    with pytest.raises(ConfigError, match=r"CompressionWrapper\(CachedEncoder\(model\)\)"):
        make(CompressionWrapper(minilm, OutputDType.INT8))
    minilm.mteb_model_meta = meta
    texts = [f"text {i}" for i in range(20)]
    outside = CompressionWrapper(make(minilm), OutputDType.INT8)
    expected = CompressionWrapper(minilm, OutputDType.INT8)
    for _ in range(2):
        got = np.asarray(encode(outside, texts))  # type: ignore[arg-type]
        assert (got == np.asarray(encode(expected, texts))).mean() > 0.99  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("intfloat/e5-small", r"is a name.*mteb\.get_model\('intfloat/e5-small'\)"),
        (object(), "object is no mteb encoder: it has no encode"),
        (type("Reranker", (), {"predict": print})(), "Reranker.*VllmCrossEncoderWrapper"),
    ],
)
def test_what_is_no_encoder(make: Make, model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(model)


def test_no_cache_in_a_cache(make: Make, make_encoder: Callable[..., VllmEncoderWrapper]) -> None:
    for inner in (make(), make_encoder()):
        with pytest.raises(ConfigError, match="has a cache already"):
            make(inner)


def test_wrong_arguments(make: Make) -> None:
    with pytest.raises(ConfigError, match="on_miss='never' is unknown"):
        make(on_miss="never")
    with pytest.raises(ConfigError, match="truncate_dim=0 must be"):
        make(truncate_dim=0)
    with pytest.raises(ConfigError, match=r"identity\['f'\]=.* no canonical form"):
        make(identity={"f": print})


# Images


def test_images_pass_through_uncached_with_one_warning(
    make: Make, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    class Seeing(FakeModel):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            seen.append(inputs)
            return "whatever it returns"

    encoder = make(Seeing())
    data = {"image": [Image.new("RGB", (2, 2))], "text": ["a"]}
    inputs: Any = DataLoader(Dataset.from_dict(data), collate_fn=list)
    for _ in range(2):
        assert encode(encoder, inputs) == "whatever it returns"
    assert seen == [inputs, inputs] and tables(cache) == []
    assert caplog.text.count("uncached") == 1 and "STS13" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mock_tasks_with_text_and_images(make: Make) -> None:
    model = mteb.get_model("mteb/baseline-random-encoder")
    meta = model.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    model.mteb_model_meta = meta
    cold = dict(mteb.mock_run(make(model)).items())
    warm = dict(mteb.mock_run(make(model, on_miss="raise")).items())
    ran = {name: result for name, result in cold.items() if result is not None}
    assert len(ran) >= 40
    for task in ALL_MOCK_TASK_TEST_GRID:
        if task.metadata.modalities != ["text"]:
            continue  # their images are drawn anew for each run
        name = task.metadata.name
        # Not ==: k-means on several threads differs in the last digit from run to run.
        assert warm[name].get_score() == pytest.approx(ran[name].get_score(), abs=1e-12), name


# Sentence Transformers


def test_a_sentence_transformer_by_itself(make: Make, model_path: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_path, device="cpu")
    with pytest.raises(ConfigError, match="neither name nor revision"):
        make(model)
    encoder = make(model, identity={"model": "all-MiniLM-L6-v2"})
    vectors = encode(encoder, ["a sentence", "another"])
    assert np.abs(vectors - model.encode(["a sentence", "another"])).max() < 1e-6


def test_its_prompts_are_known(make: Make, model_path: str, cache: Path) -> None:
    """Texts are shared where the prompt is the same, whatever the task."""
    model = SentenceTransformerEncoderWrapper(
        model_path, device="cpu", model_prompts={"query": "query: ", "STS12": "sts: "}
    )
    encoder = make(model)
    assert hits(encoder, ["a"], prompt_type=PromptType.query) == 0
    assert hits(encoder, ["a"], prompt_type=PromptType.document) == 0
    assert hits(encoder, ["a"]) == 1  # documents have no prompt here
    sts12 = mteb.get_task("STS12").metadata
    assert hits(encoder, ["a"], task_metadata=sts12, prompt_type=PromptType.query) == 0
    assert hits(encoder, ["a"], task_metadata=mteb.get_task("STS14").metadata) == 1
    table = lancedb.connect(str(cache)).open_table(tables(cache)[0][:-6]).to_arrow()
    assert sorted(table["prompt"].to_pylist()) == ["", "query: ", "sts: "]
    for prompt_type in (PromptType.query, None):
        got = encode(encoder, ["a", "b"], prompt_type=prompt_type)
        plain = np.asarray(encode(model, ["a", "b"], prompt_type=prompt_type))  # type: ignore[arg-type]
        assert np.abs(got - plain).max() < 1e-6


def test_training_it_changes_its_identity(
    make: Make, minilm: SentenceTransformerEncoderWrapper
) -> None:
    """A model that is trained in this process keeps its name."""
    encoder = make(minilm)
    encode(encoder, ["a"])
    assert hits(encoder, ["a"]) == 1
    with torch.no_grad():
        next(minilm.model.parameters())[7000, 3] += 1
    assert hits(encoder, ["a"]) == 0
    assert hits(encoder, ["a"]) == 1


def test_its_dtype_and_length_are_in_the_identity(
    make: Make, minilm: SentenceTransformerEncoderWrapper
) -> None:
    encoder = make(minilm)
    before = encoder.identity
    minilm.model.max_seq_length = 5
    assert encoder.identity != before
    minilm.model.max_seq_length = 256
    assert encoder.identity == before
    minilm.model.bfloat16()
    assert encoder.identity.dtype == "bfloat16"


def test_a_directory_is_identified_by_its_content(
    make: Make, minilm: SentenceTransformerEncoderWrapper, model_path: str, tmp_path: Path
) -> None:
    identity = make(minilm).identity
    assert identity.model == "local"
    copy = shutil.copytree(model_path, tmp_path / "copy")
    for changed in (False, True):
        if changed:
            (copy / "vocab.txt").write_text("[PAD]")  # of which the loaded model shows nothing
        other = SentenceTransformerEncoderWrapper(str(copy), device="cpu")
        assert (make(other).identity != identity) == changed


def test_precision_is_that_of_the_whole_call(
    make: Make, minilm: SentenceTransformerEncoderWrapper, cache: Path
) -> None:
    """int8 ranges depend on all texts of a call: cached floats are quantised at the end."""
    texts = [f"text number {i}" for i in range(30)]
    encoder = make(minilm)
    encode(encoder, texts[:20])
    for precision in ("int8", "uint8", "binary", "ubinary"):
        got = encode(encoder, texts, precision=precision)
        plain = encode(minilm, texts, precision=precision)  # type: ignore[arg-type]
        assert got.dtype == plain.dtype and got.shape == plain.shape
        assert (got != plain).mean() < 0.01, precision
    assert encoder.total.encoded == 30 and len(tables(cache)) == 1


def test_truncated(make: Make, minilm: SentenceTransformerEncoderWrapper, cache: Path) -> None:
    full = encode(make(minilm), ["a", "b"])
    encoder = make(minilm, truncate_dim=100)
    by_hand = full[:, :100] / np.linalg.norm(full[:, :100], axis=1, keepdims=True)
    assert encode(encoder, ["a", "b"]).tobytes() == by_hand.tobytes()
    assert encoder.stats.encoded == 0 and len(tables(cache)) == 1
    assert encoder.mteb_model_meta.experiment_kwargs == {"embed_dim": 100}
    assert minilm.mteb_model_meta.experiment_kwargs is None


def test_similarity_is_the_models(make: Make, minilm: SentenceTransformerEncoderWrapper) -> None:
    minilm.model.similarity_fn_name = "euclidean"
    encoder = make(minilm)
    vectors = encode(encoder, ["a", "b"])
    distance = np.linalg.norm(vectors[0] - vectors[1])
    expected = [[0, -distance], [-distance, 0]]
    assert np.allclose(np.asarray(encoder.similarity(vectors, vectors)), expected, atol=1e-3)
    pairs = np.asarray(encoder.similarity_pairwise(vectors, vectors[::-1].copy()))
    assert np.allclose(pairs, -distance, atol=1e-3)


def hook(model: Any) -> None:
    model[1].register_forward_hook(
        lambda module, given, result: {
            **result,
            "sentence_embedding": -given[0]["token_embeddings"][:, 0],
        }
    )


def truncation_side(model: Any) -> None:
    model.tokenizer.truncation_side = "left"


def attribute(model: Any) -> None:
    model[2].extra = {"scale": 2}


def method(model: Any) -> None:
    model[2].forward = lambda features: features


def normalizer(model: Any) -> None:
    model.tokenizer.backend_tokenizer.normalizer = Replace("hello", "goodbye")


def position_buffer(model: Any) -> None:
    embeddings = next(m for m in model.modules() if hasattr(m, "position_ids"))
    embeddings.position_ids = embeddings.position_ids.flip(-1)


def norm_setting(model: Any) -> None:
    next(m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)).eps = 0.1


@pytest.mark.parametrize(
    "change",
    [hook, truncation_side, attribute, method, normalizer, position_buffer, norm_setting],
)
def test_a_changed_sentence_transformer_misses(
    make: Make, minilm: SentenceTransformerEncoderWrapper, change: Callable[[Any], None]
) -> None:
    """In the same process and in the next: one wrapper, and a fresh one."""
    long = " ".join(f"word{i}" for i in range(400))
    texts = ["hello world", long]
    encoder = make(minilm)
    assert hits(encoder, texts) == 0
    assert hits(encoder, texts) == 2
    assert hits(make(minilm), texts) == 2
    change(minilm.model)
    for changed in (encoder, make(minilm)):
        vectors = np.asarray(encode(changed, texts))
        assert np.allclose(vectors, minilm.model.encode(texts), atol=1e-5)
    assert encoder.stats.encoded == 2


class Whitening(torch.nn.Module):
    """Buffers that are fitted, and no parameter."""

    def __init__(self, dim: int = 384) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = features["sentence_embedding"] - self.mean
        return features


def test_a_refitted_whitening_misses(make: Make, minilm: SentenceTransformerEncoderWrapper) -> None:
    whitening = Whitening()
    minilm.model.append(whitening)
    assert hits(make(minilm), ["a"]) == 0
    assert hits(make(minilm), ["a"]) == 1
    whitening.mean += 0.1
    assert hits(make(minilm), ["a"]) == 0


class Adapted(torch.nn.Module):
    """As PEFT does it: all adapters' weights are there, and attributes say which are applied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.adapters = torch.nn.ModuleDict({name: torch.nn.Linear(384, 384) for name in "ab"})
        self.active_adapters = ["a"]
        self.scaling = {"a": 1.0, "b": 1.0}
        self._disable_adapters = False

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        for name in () if self._disable_adapters else self.active_adapters:
            vectors = features["sentence_embedding"]
            features["sentence_embedding"] = vectors + self.scaling[name] * self.adapters[name](
                vectors
            )
        return features


def another_adapter(module: Adapted) -> None:
    module.active_adapters = ["b"]


def both_adapters(module: Adapted) -> None:
    module.active_adapters.append("b")


def no_adapter(module: Adapted) -> None:
    module._disable_adapters = True


def half_an_adapter(module: Adapted) -> None:
    module.scaling["a"] = 0.5


@pytest.mark.parametrize("change", [another_adapter, both_adapters, no_adapter, half_an_adapter])
def test_another_adapter_misses_and_the_first_one_hits_again(
    make: Make, minilm: SentenceTransformerEncoderWrapper, change: Callable[[Any], None]
) -> None:
    adapted = Adapted()
    minilm.model.append(adapted)
    first = encode(make(minilm), ["a"])
    before = copy.deepcopy({n: v for n, v in vars(adapted).items() if not n.startswith("_m")})
    change(adapted)
    encoder = make(minilm)
    assert hits(encoder, ["a"]) == 0
    assert np.allclose(encode(encoder, ["a"]), minilm.model.encode(["a"]), atol=1e-5)
    for name in ("active_adapters", "scaling", "_disable_adapters"):
        setattr(adapted, name, before[name])
    assert hits(make(minilm), ["a"]) == 1
    assert (encode(make(minilm), ["a"]) == first).all()


class Scaled(FakeModel):
    """An encoder of one's own, with settings where nobody would look."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = {"heads": [np.ones(8, np.float32)]}

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return super().encode(*args, **kwargs) * self.parts["heads"][0]


def test_settings_of_an_encoder_of_ones_own(make: Make) -> None:
    model = Scaled()
    encoder = make(model)
    assert hits(encoder, ["a"]) == 0
    assert hits(encoder, ["a"]) == 1  # although it has counted its calls meanwhile
    model.parts["heads"][0][3] = 2
    assert hits(encoder, ["a"]) == 0
    assert hits(make(Scaled()), ["a"]) == 1


def test_an_endpoint_whose_model_was_exchanged(make: Make) -> None:
    """What nothing in this process shows: canaries are compared before the first hit."""
    assert hits(make(), ["a", "b"]) == 0
    model = Endpoint()
    assert hits(make(model), ["a", "b"]) == 0
    assert hits(make(model), ["a", "b"]) == 2
    SERVED["shift"] = 1.0
    try:
        with pytest.raises(ChangedModelError, match=r"not the one that filled .*canaries=False"):
            encode(make(Endpoint()), ["a"])
        with pytest.raises(ChangedModelError, match="not the one that filled"):
            encode(make(Endpoint(), on_miss="raise"), ["a"])
        assert hits(make(Endpoint(), canaries=False), ["a"]) == 1
    finally:
        SERVED["shift"] = 0.0


SERVED = {"shift": 0.0}


class Endpoint(FakeModel):
    """Its model is elsewhere."""

    def __init__(self) -> None:
        super().__init__(name="org/endpoint")

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return super().encode(*args, **kwargs) + np.float32(SERVED["shift"])


def test_canaries_cost_one_call_a_run(make: Make) -> None:
    hits(make(), ["a"])
    model = FakeModel()
    encoder = make(model)
    for _ in range(3):
        assert hits(encoder, ["a"]) == 1
    assert (model.canaries, model.calls) == (1, [])


def test_what_cannot_be_looked_into_is_asked_of_the_user(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    model = FakeModel()
    model.session = iter([1])  # type: ignore[attr-defined]  # an object without attributes
    with caplog.at_level("INFO"):
        hits(make(model), ["a"])
    assert "cannot look into: session (builtins.list_iterator). Canaries tell" in caplog.text
    with pytest.raises(
        ConfigError, match=r"session \(builtins.list_iterator\), and canaries=False"
    ):
        encode(make(model, canaries=False), ["a"])
    assert hits(make(model, canaries=False, identity={"server": "v1"}), ["a"]) == 0


def test_a_cache_without_hard_links_is_found_out_before_the_model_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(make(), ["a"])
    no_hard_links(monkeypatch)
    model = FakeModel()
    assert hits(make(model), ["a"]) == 1
    with pytest.raises(CacheError, match="a hard link is refused"):
        encode(make(model, on_write_error="raise"), ["a", "b"])
    assert model.encoded == []
    going_on = make(model)
    assert len(encode(going_on, ["a", "b"])) == 2 and going_on.total.unwritten == 1
    with pytest.raises(ConfigError, match=r"on_write_error='stop' is unknown\. Use one of warn"):
        make(model, on_write_error="stop")


@pytest.mark.parametrize("compact", [True, False])
def test_small_calls_are_compacted_unless_it_is_turned_off(tmp_path: Path, compact: bool) -> None:
    model = CachedEncoder(FakeModel(), tmp_path, compact_automatically=compact, canaries=False)
    for i in range(20):
        encode(model, [f"text {i}"])
    for thread in threading.enumerate():
        if thread.name == "embcache-compactor":
            thread.join(60)
    [location] = Database(tmp_path, writable=False).location.tables()
    assert (len(Space(location).open().fragments) < 20) is compact


def test_requests_of_threads_are_counted_once(remote: Remote) -> None:
    encoder = CachedEncoder(FakeModel(), remote.url, storage_options=remote.options)
    encode(encoder, ["the space is there"])
    before, first = encoder.total.requests, encoder._database.location.traffic.requests
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: encode(encoder, [f"text {i}"]), range(8)))
    sent = encoder._database.location.traffic.requests - first
    assert 0 < encoder.total.requests - before <= sent
