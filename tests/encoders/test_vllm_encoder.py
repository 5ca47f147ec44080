from __future__ import annotations

import gc
import inspect
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.models import vllm_wrapper
from mteb.types import PromptType
from torch.utils.data import DataLoader

from embcache import (
    CacheError,
    CacheFormatError,
    ConfigError,
    DtypeMismatchError,
    EmbcacheError,
    EngineError,
    InputError,
    MissingTextsError,
    ModelNotFoundError,
    VllmEncoderWrapper,
)
from embcache.encoders.arguments import CacheArguments
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION
from embcache.identity import dtype_probe
from embcache.identity.dtype import AutoDtype
from tests.conftest import encode, run_python
from tests.fakes import FakeEngine, fake_vector
from tests.hub import MODEL, Hub
from tests.spaces import no_hard_links

Make = Callable[..., VllmEncoderWrapper]
E5 = {"query": "query: ", "document": "passage: "}


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: p
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    }


def test_every_parameter_of_mteb_is_here_with_its_default() -> None:
    ours = parameters(VllmEncoderWrapper.__init__)
    for theirs in (
        vllm_wrapper.VllmEncoderWrapper.__init__,
        vllm_wrapper.VllmWrapperBase.__init__,
    ):
        for name, parameter in parameters(theirs).items():
            assert name in ours, f"mteb's {name} is missing"
            assert ours[name].default == parameter.default, name
            assert ours[name].kind == parameter.kind, name
    theirs_encode = parameters(vllm_wrapper.VllmEncoderWrapper.encode)
    assert parameters(VllmEncoderWrapper.encode).keys() == theirs_encode.keys()
    assert inspect.signature(VllmEncoderWrapper).parameters["kwargs"]
    added = ours.keys() - parameters(vllm_wrapper.VllmEncoderWrapper.__init__).keys()
    added -= parameters(vllm_wrapper.VllmWrapperBase.__init__).keys()
    assert added == {*CacheArguments.names(), "truncate_dim", "make_engine"}


def test_a_path_object_is_a_model(make_encoder: Make, tiny_model: Path) -> None:
    encoder = make_encoder(tiny_model)
    assert encoder.identity == make_encoder(str(tiny_model)).identity


def test_it_is_an_mteb_encoder(make_encoder: Make) -> None:
    from mteb.models import EncoderProtocol

    encoder = make_encoder()
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta is not None and encoder.mteb_model_meta.name
    vectors = encode(encoder, ["a", "b"])
    assert np.allclose(np.diag(np.asarray(encoder.similarity(vectors, vectors))), 1)
    assert np.allclose(np.asarray(encoder.similarity_pairwise(vectors, vectors)), 1)


def test_engine_arguments_reach_the_engine(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    overrides = {"num_hidden_layers": 2}
    make_encoder(
        dtype="half", max_model_len=64, hf_overrides=overrides, head_dtype="float32", seed=3
    )
    arguments = fake_engines[0].arguments
    assert arguments["dtype"] == "float16" and arguments["max_model_len"] == 64
    assert arguments["seed"] == 3 and arguments["max_num_seqs"] == 128
    assert arguments["hf_overrides"] == {"num_hidden_layers": 2, "head_dtype": "float32"}
    assert overrides == {"num_hidden_layers": 2}  # mteb's own wrapper changes the caller's dict
    assert arguments["gpu_memory_utilization"] is MTEB_GPU_MEMORY_UTILIZATION
    make_encoder(gpu_memory_utilization=float("0.90"))
    user = fake_engines[1].arguments["gpu_memory_utilization"]
    assert user == 0.9 and user is not MTEB_GPU_MEMORY_UTILIZATION


def test_warm_is_bit_identical_and_starts_no_engine(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    texts = [f"text {i % 40}" for i in range(90)]
    cold = encode(make_encoder(), texts)
    warm_encoder = make_encoder()
    warm = encode(warm_encoder, texts)
    assert cold.dtype == np.float32 and cold.tobytes() == warm.tobytes()
    assert [engine.starts for engine in fake_engines] == [1, 0]
    assert warm_encoder.stats.hits == 40 and warm_encoder.stats.encoded == 0
    encode(warm_encoder, ["text 1"])
    assert (warm_encoder.stats.texts, warm_encoder.total.texts) == (1, 91)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_num_seqs": 7},
        {"max_num_batched_tokens": 512},
        {"gpu_memory_utilization": 0.2},
        {"tensor_parallel_size": 2},
        {"enforce_eager": True},
        {"enable_prefix_caching": True},
        {"renderer_num_workers": 2},
        {"prompt_dict": {"query": "q: "}},
        {"read_only": True},
        {"dtype": "float"},
        {"revision": "main"},
    ],
    ids=str,
)
def test_what_changes_no_vector_hits(
    make_encoder: Make, fake_engines: list[FakeEngine], arguments: dict[str, Any]
) -> None:
    encode(make_encoder(), ["a"])
    encode(make_encoder(**arguments), ["a"])
    assert [engine.starts for engine in fake_engines] == [1, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_model_len": 128},
        {"pooler_config": {"seq_pooling_type": "CLS"}},
        {"hf_overrides": {"x": 1}},
        {"head_dtype": "float32"},
        {"dtype": "bfloat16"},
        {"quantization": "fp8"},
        {"of_the_future": 1},
    ],
    ids=str,
)
def test_what_changes_vectors_makes_a_new_space(
    make_encoder: Make, fake_engines: list[FakeEngine], arguments: dict[str, Any], tmp_path: Path
) -> None:
    encode(make_encoder(), ["a"])
    other = make_encoder(**arguments)
    fake_engines[-1].actual_dtype = other.identity.dtype
    encode(other, ["a"])
    assert [engine.starts for engine in fake_engines] == [1, 1]
    assert len(list((tmp_path / "cache").glob("*.lance"))) == 2


def test_a_checkpoint_overwritten_in_place_gets_a_new_space(
    make_encoder: Make, fake_engines: list[FakeEngine], tiny_model: Path
) -> None:
    encode(make_encoder(), ["a"])
    (tiny_model / "model.safetensors").write_bytes(b"trained")
    encode(make_encoder(), ["a"])
    assert [engine.starts for engine in fake_engines] == [1, 1]


def test_revision_of_a_hub_model_makes_a_new_space(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    for revision in ("0" * 40, "1" * 40, "0" * 40):
        encode(make_encoder("organization/name", revision=revision), ["a"])
    assert [engine.starts for engine in fake_engines] == [1, 1, 0]


def test_model_meta_brings_its_revision(make_encoder: Make) -> None:
    meta = mteb.get_model_meta("intfloat/e5-small")
    encoder = make_encoder(meta, revision="ignored", dtype="auto")
    assert encoder.identity.revision == meta.revision and encoder.mteb_model_meta is meta


def test_two_tasks_share_what_they_have_in_common(
    make_encoder: Make, fake_engines: list[FakeEngine]
) -> None:
    encoder = make_encoder(prompt_dict=E5)
    for name in ("STS12", "STS13"):
        encode(
            encoder,
            ["a", "b"],
            task_metadata=mteb.get_task(name).metadata,
            prompt_type=PromptType.document,
        )
    assert encoder.stats.encoded == 0 and encoder.stats.hits == 2


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt_dict", "expected"),
        [
            ({"query": "5"}, "5"),
            ({"query": "5", "Retrieval": "4"}, "4"),
            ({"query": "5", "Retrieval": "4", "Retrieval-query": "3"}, "3"),
            ({"Retrieval-query": "3", "ArguAna": "2"}, "2"),
            ({"ArguAna": "2", "ArguAna-query": "1", "Retrieval": "4"}, "1"),
            ({"document": "6", "SciFact": "7", "ArguAna-document": "8"}, ""),
            ({}, ""),
            (None, ""),
        ],
    )
    def test_mtebs_order_of_lookup(
        self,
        make_encoder: Make,
        fake_engines: list[FakeEngine],
        prompt_dict: dict[str, str] | None,
        expected: str,
    ) -> None:
        metadata = mteb.get_task("ArguAna").metadata
        encoder = make_encoder(prompt_dict=prompt_dict)
        encode(encoder, ["text"], task_metadata=metadata, prompt_type=PromptType.query)
        assert fake_engines[0].encoded == [expected + "text"]

    def test_query_and_document_are_two_vectors(
        self, make_encoder: Make, fake_engines: list[FakeEngine]
    ) -> None:
        encoder = make_encoder(prompt_dict=E5)
        query, document = (
            encode(encoder, ["text"], prompt_type=kind)
            for kind in (PromptType.query, PromptType.document)
        )
        assert (query[0] == fake_vector("query: text")).all()
        assert (document[0] == fake_vector("passage: text")).all()

    def test_registered(self, make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
        encoder = make_encoder("intfloat/e5-small", revision="0" * 40, prompt_dict="registered")
        encode(encoder, ["text"], prompt_type=PromptType.query)
        assert fake_engines[0].encoded == ["query: text"]

    def test_registered_prompts_not_given(
        self, make_encoder: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        encoder = make_encoder("intfloat/e5-small", revision="0" * 40)
        encode(encoder, ["text"])
        encode(encoder, ["text"])
        said = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(said) == 1 and 'prompt_dict="registered"' in said[0].getMessage()

    @pytest.mark.parametrize(
        ("template", "prompt_type", "documents", "expected"),
        [
            ("Instruct: {instruction}\nQuery: ", PromptType.query, True, "Instruct: find\nQuery: "),
            ("I: {instruction} ", PromptType.document, True, "I: find "),
            ("I: {instruction} ", PromptType.document, False, ""),
            (lambda i, t: f"<{i}|{t.value}>", PromptType.query, False, "<find|query>"),
        ],
    )
    def test_instructions(
        self, make_encoder: Make, fake_engines: list[FakeEngine], template: Any,
        prompt_type: PromptType, documents: bool, expected: str,
    ) -> None:  # fmt: skip
        encoder = make_encoder(
            prompt_dict={"ArguAna": "find"},
            use_instructions=True,
            instruction_template=template,
            apply_instruction_to_documents=documents,
        )
        metadata = mteb.get_task("ArguAna").metadata
        encode(encoder, ["text"], task_metadata=metadata, prompt_type=prompt_type)
        assert fake_engines[0].encoded == [expected + "text"]

    @pytest.mark.filterwarnings("ignore:Prompt type")
    def test_the_same_prompts_as_mtebs_wrapper_with_instructions(
        self, make_encoder: Make, fake_engines: list[FakeEngine]
    ) -> None:
        """Side by side with mteb's own class, without its engine."""
        arguments: dict[str, Any] = {
            "prompt_dict": {"query": "q"},
            "use_instructions": True,
            "instruction_template": "I: {instruction} ",
        }
        theirs = object.__new__(vllm_wrapper.VllmEncoderWrapper)
        theirs.prompts_dict = arguments["prompt_dict"]
        theirs.instruction_template = arguments["instruction_template"]
        encoder = make_encoder(**arguments)
        for name in ("ArguAna", "STS13", "AmazonCounterfactualClassification"):
            metadata = mteb.get_task(name).metadata
            for kind in (PromptType.query, PromptType.document, None):
                expected = theirs.get_task_instruction(metadata, kind)
                assert encoder.prompt_for(kind, metadata) == expected


class TestBadInput:
    """Each is a clear error before any encoding, with nothing half-written."""

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"dtype": "fp16"}, ConfigError, "dtype='fp16' is unknown"),
            ({"on_miss": "skip"}, ConfigError, "on_miss='skip' is unknown"),
            ({"use_instructions": True}, ConfigError, "instruction_template must be provided"),
            (
                {"use_instructions": True, "instruction_template": "no place"},
                ConfigError,
                r"must contain the string '\{instruction\}'",
            ),
            ({"prompt_dict": "query: "}, ConfigError, 'neither a dict nor "registered"'),
            ({"cache_path": "ftp://bucket"}, ConfigError, "is a URL of ftp:"),
            ({"cache_path": ""}, ConfigError, "cache_path is empty"),
            ({"cache_path": "/proc/cache"}, CacheError, "cannot be written"),
            ({"hf_overrides": print}, ConfigError, "has no canonical form"),
            ({"model": "no/such-model"}, ModelNotFoundError, "model='no/such-model'"),
            ({"model": "./no/such/dir"}, ModelNotFoundError, "neither a directory here"),
        ],
        ids=str,
    )
    def test_at_construction(
        self, make_encoder: Make, arguments: dict[str, Any], error: type[Exception], match: str
    ) -> None:
        with pytest.raises(error, match=match) as raised:
            make_encoder(**arguments)
        assert isinstance(raised.value, EmbcacheError)

    def test_a_cache_path_that_is_a_file(self, make_encoder: Make, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(CacheError, match="is a file"):
            make_encoder(cache_path=tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_newer_format(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        encode(make_encoder(), ["a"])
        (path,) = (tmp_path / "cache").glob("*.lance")
        lance.dataset(str(path)).update_schema_metadata({"embcache:format_version": "99"})
        for dtype in ("float32", "auto"):
            with pytest.raises(CacheFormatError, match="format version 99"):
                encode(make_encoder(dtype=dtype), ["b"])
        assert [engine.starts for engine in fake_engines] == [1, 0, 0]

    def test_no_text(self, make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
        data = DataLoader(Dataset.from_dict({"sentence": ["a"]}))
        with pytest.raises(InputError, match="no 'text' column"):
            encode(make_encoder(), data)  # type: ignore[arg-type]
        assert fake_engines[0].starts == 0

    def test_lone_surrogate(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        data = DataLoader([{"text": "a"}, {"text": "b\ud83d"}])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="row 1 holds a lone surrogate"):
            encode(make_encoder(), data)
        assert fake_engines[0].starts == 0 and not list((tmp_path / "cache").iterdir())

    def test_precision(self, make_encoder: Make) -> None:
        with pytest.raises(ConfigError, match="precision='int8'"):
            encode(make_encoder(), ["a"], precision="int8")


class TestModes:
    def test_on_miss_raise(self, make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
        with pytest.raises(MissingTextsError, match="2 of 2 texts"):
            encode(make_encoder(on_miss="raise"), ["a", "b"])
        encode(make_encoder(), ["a"])
        with pytest.raises(MissingTextsError, match="1 of 2 texts"):
            encode(make_encoder(on_miss="raise"), ["a", "b"])
        assert fake_engines[0].starts == fake_engines[2].starts == 0

    def test_on_miss_raise_makes_no_directory(self, make_encoder: Make, tmp_path: Path) -> None:
        with pytest.raises(MissingTextsError, match="1 of 1 texts"):
            encode(make_encoder(on_miss="raise", cache_path=tmp_path / "none"), ["a"])
        assert not (tmp_path / "none").exists()

    def test_read_only(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        encode(make_encoder(), ["a"])
        before = sorted(path for path in (tmp_path / "cache").rglob("*"))
        vectors = encode(make_encoder(read_only=True), ["a", "b"])
        assert (vectors == np.stack([fake_vector("a"), fake_vector("b")])).all()
        assert fake_engines[1].encoded == ["b"]
        assert sorted(path for path in (tmp_path / "cache").rglob("*")) == before

    def test_no_cache(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        encoder = make_encoder(cache_path=None, dtype="auto")
        for _ in range(2):
            vectors = encode(encoder, ["a", "b", "a"])
            assert (vectors[0] == vectors[2]).all()
        assert fake_engines[0].encoded == ["a", "b"] * 2 and not (tmp_path / "cache").exists()

    def test_default_cache_path(
        self, make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        default = inspect.signature(VllmEncoderWrapper).parameters["cache_path"].default
        encode(make_encoder(cache_path=default), ["a"])
        assert list((tmp_path / "cache").glob("*.lance"))

    def test_store_text(self, make_encoder: Make, tmp_path: Path) -> None:
        encode(make_encoder(store_text=False), ["a secret"])
        (path,) = (tmp_path / "cache").glob("*.lance")
        assert "text" not in lance.dataset(str(path)).schema.names
        assert not any(b"a secret" in f.read_bytes() for f in path.rglob("*") if f.is_file())

    def test_first_write_is_on_record(self, make_encoder: Make, tmp_path: Path) -> None:
        encode(make_encoder(prompt_dict=E5), ["a"], prompt_type=PromptType.query)
        (path,) = (tmp_path / "cache").glob("*.lance")
        row = lance.dataset(str(path)).to_table().to_pylist()[0]
        assert (row["text"], row["prompt"]) == ("a", "query: ")
        assert (row["prompt_type"], row["task"]) == ("query", "STS13")

    def test_another_version_of_the_engine_is_said(
        self, make_encoder: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode(make_encoder(), ["a"])
        monkeypatch.setattr(FakeEngine, "version", "fake 2.0")
        encode(make_encoder(), ["a"])
        assert not caplog.records
        encode(make_encoder(), ["a", "b"])
        assert "was begun with fake 1.0; new rows come from fake 2.0" in caplog.text

    def test_the_engine_goes_with_the_encoder(
        self, make_encoder: Make, fake_engines: list[FakeEngine]
    ) -> None:
        encoder = make_encoder()
        encode(encoder, ["a"])
        assert fake_engines[0].started
        del encoder
        gc.collect()
        assert not fake_engines[0].started

    def test_changing_directory(
        self, make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        encoder = make_encoder(cache_path="relative")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        encode(encoder, ["a"])
        assert list((tmp_path / "relative").glob("*.lance"))

    def test_cleanup_and_on(self, make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
        encoder = make_encoder()
        encode(encoder, ["a"])
        encoder.cleanup()
        encoder.cleanup()
        encode(encoder, ["a"])
        assert fake_engines[0].starts == 1
        encode(encoder, ["b"])
        assert fake_engines[0].starts == 2


class TestRecipe:
    """What makes the same encoder again, elsewhere."""

    def test_it_pickles_and_makes_the_same(self, tiny_model: Path, tmp_path: Path) -> None:
        encoder = VllmEncoderWrapper(
            str(tiny_model),
            dtype="float32",
            cache_path=tmp_path / "cache",
            prompt_dict={"query": "q: "},
            storage_options={"timeout": "7s"},
            seed=3,
        )
        again = pickle.loads(pickle.dumps(encoder.recipe()))()
        assert again.identity == encoder.identity
        assert again.prompt_for("query") == "q: "
        assert encoder.recipe().keywords["storage_options"] == {"timeout": "7s"}

    def test_places_are_absolute(
        self, make_encoder: Make, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        given = make_encoder(tiny_model.name, cache_path="relative").recipe().keywords
        assert (given["model"], given["revision"]) == (str(tiny_model), None)
        assert given["cache_path"] == str(tmp_path / "relative")
        monkeypatch.chdir("/")
        again = make_encoder(tiny_model, cache_path=tmp_path / "relative")
        assert again.identity == VllmEncoderWrapper(**given).identity

    def test_the_revision_is_the_commit(self, make_encoder: Make, hub: Hub) -> None:
        hub.add("org/model", MODEL, "a" * 40)
        given = make_encoder("org/model").recipe().keywords
        assert (given["model"], given["revision"]) == ("org/model", "a" * 40)

    def test_what_is_changed(self, make_encoder: Make, fake_engines: list[FakeEngine]) -> None:
        encoder = make_encoder(on_write_error="warn")
        recipe = encoder.recipe(dtype="float16", on_write_error="raise")
        assert recipe.keywords["dtype"] == "float16" and len(fake_engines) == 1
        assert recipe().identity == encoder.identity.with_dtype("float16")
        assert encoder.recipe().keywords["dtype"] == "float32"

    def test_without_a_cache(self, make_encoder: Make) -> None:
        assert make_encoder(cache_path=None).recipe().keywords["cache_path"] is None


class TestAutoDtype:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What "auto" meant in another test, of the same model, is not remembered."""
        monkeypatch.setenv("EMBCACHE_HOME", str(tmp_path / "home"))

    def test_settled_by_the_engine_where_nothing_is_cached(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        encoder = make_encoder(dtype="auto")
        fake_engines[0].actual_dtype = "float16"
        encode(encoder, ["a"])
        assert encoder.identity.dtype == "float16"
        warm = make_encoder(dtype="auto")  # remembered
        encode(warm, ["a"])
        assert warm.stats.hits == 1 and fake_engines[1].starts == 0
        named = make_encoder(dtype="float16")
        encode(named, ["a"])
        assert named.stats.hits == 1

    def test_what_is_cached_in_another_dtype_is_said(
        self,
        make_encoder: Make,
        fake_engines: list[FakeEngine],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A cache from a GPU, on a machine where "auto" means something else."""
        encoder = make_encoder(dtype="bfloat16")
        fake_engines[0].actual_dtype = "bfloat16"
        encode(encoder, ["a"])
        encode(make_encoder(dtype="auto", cache_path=tmp_path / "another"), ["a"])  # float32
        here = make_encoder(dtype="auto")
        encode(here, ["a"])
        assert here.stats.encoded == 1
        assert "means float32 here, and the cache holds this model in bfloat16" in caplog.text

    def test_a_wrong_memory_of_auto_is_corrected(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        before = make_encoder(dtype="auto", cache_path=tmp_path / "another")
        fake_engines[0].actual_dtype = "bfloat16"
        encode(before, ["a"])
        encoder = make_encoder(dtype="auto")
        with pytest.raises(DtypeMismatchError, match="'auto' was taken for bfloat16"):
            encode(encoder, ["a"])
        assert encode(encoder, ["a"]).shape == (1, 8)
        assert encoder.identity.dtype == "float32"
        assert len(encode(make_encoder(dtype="auto"), ["a"])) == 1 and fake_engines[2].starts == 0

    def test_a_cache_without_hard_links_is_found_out_before_the_engine_starts(
        self,
        make_encoder: Make,
        fake_engines: list[FakeEngine],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        no_hard_links(monkeypatch)
        with pytest.raises(CacheError, match="a hard link is refused"):
            encode(make_encoder(dtype="auto", on_write_error="raise"), ["a"])
        assert fake_engines[0].starts == 0
        assert list((tmp_path / "cache").iterdir()) == []
        encoder = make_encoder(dtype="auto")
        assert encode(encoder, ["a"]).shape == (1, 8) and encoder.stats.unwritten == 1

    def test_it_is_settled_without_an_engine(
        self, make_encoder: Make, fake_engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter(["bfloat16"])
        monkeypatch.setattr(AutoDtype, "_probe", lambda _: next(answers))
        assert make_encoder(dtype="float16").settled_dtype() == "float16"
        assert make_encoder(dtype="auto").settled_dtype() == "bfloat16"
        assert make_encoder(dtype="auto").settled_dtype() == "bfloat16"  # it is remembered
        assert not any(engine.starts for engine in fake_engines)

    def test_no_device_settles_nothing(
        self, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AutoDtype, "_probe", lambda _: dtype_probe.NO_DEVICE)
        for _ in range(2):  # and what is remembered says the same
            with pytest.raises(EngineError, match=r"'auto' is vLLM's choice for a GPU, .* none"):
                make_encoder(dtype="auto").settled_dtype()

    def test_on_miss_raise_counts_where_nothing_is_cached(self, make_encoder: Make) -> None:
        with pytest.raises(MissingTextsError, match="2 of 2 texts"):
            encode(make_encoder(dtype="auto", on_miss="raise"), ["a", "b"])

    def test_a_mismatch_is_an_error_never_a_mixed_space(
        self, make_encoder: Make, fake_engines: list[FakeEngine], tmp_path: Path
    ) -> None:
        encoder = make_encoder(dtype="float32")
        fake_engines[0].actual_dtype = "float16"
        with pytest.raises(
            DtypeMismatchError, match=r"runs in float16, and dtype='float32' was taken"
        ):
            encode(encoder, ["a"])
        assert not list((tmp_path / "cache").glob("*.lance"))


def test_constructing_imports_no_vllm(tiny_model: Path, tmp_path: Path) -> None:
    out = run_python(
        "from embcache import VllmEncoderWrapper\n"
        f"VllmEncoderWrapper({str(tiny_model)!r}, cache_path={str(tmp_path / 'c')!r})\n"
        "print('vllm' in sys.modules, 'lancedb' in sys.modules)"
    )
    assert out.split() == ["False", "False"]
