"""mteb's own result cache, which must not answer for another configuration."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
from mteb.cache import ResultCache
from mteb.mocks.mock_tasks import MockRerankingTask, MockRetrievalTask
from mteb.models import ModelMeta
from mteb.models.abs_encoder import PromptSource

from embcache import VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.encoders.experiment import experiment_meta, readable
from tests.fakes import Engines

Make = Callable[..., VllmEncoderWrapper]
MakeCross = Callable[..., VllmCrossEncoderWrapper]

E5 = {"query": "query: ", "document": "passage: "}
INSTRUCTIONS: dict[str, Any] = {"prompt_dict": {}, "use_instructions": True}


def adapter(folder: Path, weights: bytes) -> str:
    """A folder that is taken for a LoRA adapter; no engine could load it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


def template(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "score.jinja").write_text(text)
    return folder / "score.jinja"


def name(encoder: Any) -> str | None:
    assert encoder.mteb_model_meta is not None
    return encoder.mteb_model_meta.experiment_name


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[[Any], tuple[float, int]]:
    """Score of a mock task and number of texts that were encoded, with mteb's result cache on."""
    cache = ResultCache(tmp_path / "results")

    def run(encoder: Any) -> tuple[float, int]:
        is_cross = encoder.mteb_model_meta.is_cross_encoder
        task = MockRerankingTask() if is_cross else MockRetrievalTask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False)
        return float(result.task_results[0].get_score()), encoder.total.texts

    return run


def different(tmp_path: Path) -> list[dict[str, Any]]:
    """Configurations of the encoder, no two of which make the same vectors."""
    return [
        {},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"prompt_dict": E5},
        {"prompt_dict": {"query": "query: "}},
        {"prompt_dict": {"query": "query_ "}},  # the same folder name to mteb
        {"prompt_dict": {"query": "query:  "}},
        {"prompt_dict": {"query": "x" * 3000}},
        {"prompt_dict": {"query": "x" * 3000 + "y"}},
        {"prompt_dict": {"query": "検索: " * 90}},
        {"prompt_dict": {"query": "a\n/b"}},
        {"prompt_dict": {"query": "a\n\\b"}},
        {"prompt_dict": {"query": 'q","document":"d'}},
        {"prompt_dict": {"query": "q", "document": "d"}},
        {"prompt_dict": {"query": "", "Retrieval": "r"}},
        {"prompt_dict": {"Retrieval": "r"}},
        INSTRUCTIONS | {"instruction_template": "I: {instruction} "},
        INSTRUCTIONS | {"instruction_template": "I: {instruction}\n"},
        INSTRUCTIONS | {"instruction_template": "I: {instruction} ", "prompt_dict": E5},
        INSTRUCTIONS
        | {"instruction_template": "I: {instruction} ", "apply_instruction_to_documents": False},
        INSTRUCTIONS | {"instruction_template": lambda text, kind: f"<{text}>"},
        INSTRUCTIONS | {"instruction_template": lambda text, kind: f"[{text}]"},
        {"max_model_len": 64},
        {"max_model_len": 128},
        {"pooler_config": {"pooling_type": "CLS"}},
        {"pooler_config": {"pooling_type": "MEAN"}},
        {"hf_overrides": {"num_hidden_layers": 2}},
        {"hf_overrides": {"num_hidden_layers": "2"}},
        {"head_dtype": "float32"},
        {"quantization": "fp8"},
        {"trust_remote_code": False},
        {"of_the_future": 1},
        {"of_the_future": "1"},
        {"of_the_future": True},
        {"of_the_future": "True"},
        {"of_the_future": [1, 2]},
        {"of_the_future": "1,2"},
        {"seed": 7},
        {"config": "format_hf"},
        {"config_format": "hf"},
        {"lora_request": adapter(tmp_path / "1" / "adapter", b"one")},
        {"lora_request": adapter(tmp_path / "2" / "adapter", b"two")},
        {"truncate_dim": 4},
        {"truncate_dim": 5},
        {"truncate_dim": 4, "prompt_dict": E5},
    ]


@pytest.fixture
def make_plain(make_encoder: Make) -> Make:
    """Encoders whose dtype is not named."""
    return functools.partial(make_encoder, dtype="auto")


def test_no_two_configurations_share_a_folder(make_plain: Make, tmp_path: Path) -> None:
    made = [(given, name(make_plain(**given))) for given in different(tmp_path)]
    for (one, first), (other, second) in itertools.combinations(made, 2):
        assert first != second, (one, other)


def test_every_folder_can_be_made_and_read(make_plain: Make, tmp_path: Path) -> None:
    """255 bytes are all that a file system takes, and a script has no trouble with ASCII."""
    for given in different(tmp_path):
        folder = name(make_plain(**given)) or "default"
        assert len(folder.encode()) <= 200 and folder.isascii() and folder.isprintable(), given
        assert not set(folder) & set("/\\ :*?\"<>|'$&"), folder
        (tmp_path / folder).mkdir()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt_dict": {}},
        {"prompt_dict": {"query": ""}},
        {"use_instructions": True, "instruction_template": "I: {instruction}"},  # as in mteb: off
        {"instruction_template": "I: {instruction}", "apply_instruction_to_documents": False},
        {"max_num_seqs": 7, "gpu_memory_utilization": 0.3, "enforce_eager": True},
        {"max_model_len": None, "pooler_config": None, "hf_overrides": {}, "quantization": None},
        {"trust_remote_code": True, "pooler_config": {"pooling_type": None}},
        {"read_only": True},
        {"kv_cache_memory_bytes": 2**30, "tensor_parallel_size": 2},
    ],
    ids=str,
)
def test_what_changes_no_vector_is_filed_as_by_mtebs_wrapper(
    make_plain: Make, arguments: dict[str, Any]
) -> None:
    meta = make_plain(**arguments).mteb_model_meta
    assert meta is not None and meta.experiment_kwargs is None and meta.experiment_name is None


def test_the_same_said_otherwise_is_the_same_folder(make_plain: Make, tmp_path: Path) -> None:
    e5: Any = {"model": "intfloat/e5-small", "revision": "0" * 40}
    one, two = tmp_path / "one", tmp_path / "two"
    same = [
        ({"prompt_dict": "registered", **e5}, {"prompt_dict": E5, **e5}),
        ({"prompt_dict": E5}, {"prompt_dict": dict(reversed(E5.items()))}),
        ({"dtype": "half"}, {"dtype": "float16"}),
        ({"head_dtype": "float32"}, {"hf_overrides": {"head_dtype": "float32"}}),
        (
            {"lora_request": adapter(one / "a", b"same")},
            {"lora_request": adapter(two / "b", b"same")},
        ),
    ]
    for first, second in same:
        assert name(make_plain(**first)) == name(make_plain(**second)) != None, first  # noqa: E711


def test_short_values_are_as_they_are(make_plain: Make) -> None:
    encoder = make_plain(dtype="half", max_model_len=64, quantization="fp8")
    assert encoder.mteb_model_meta is not None
    kwargs = {"dtype": "float16", "max_model_len": 64, "quantization": "fp8"}
    assert encoder.mteb_model_meta.experiment_kwargs == kwargs
    assert name(encoder) == "dtype_float16__max_model_len_64__quantization_fp8"
    folder = name(make_plain(prompt_dict={"query": "query: "}))
    assert folder is not None and folder.startswith("prompt_dict_query-query-")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"prompt_dict": {"query": "one "}}, {"prompt_dict": {"query": "two "}}),
        ({"prompt_dict": {"query": "a:b"}}, {"prompt_dict": {"query": "a_b"}}),
        ({}, {"max_model_len": 32}),
        ({"pooler_config": {"pooling_type": "CLS"}}, {}),
        (
            INSTRUCTIONS | {"instruction_template": lambda text, kind: "one " + text},
            INSTRUCTIONS | {"instruction_template": lambda text, kind: "two " + text},
        ),
        ({"truncate_dim": 4}, {"truncate_dim": 2}),
    ],
    ids=str,
)
def test_mteb_answers_for_the_same_configuration_and_for_no_other(
    make_encoder: Make,
    evaluate: Callable[[Any], tuple[float, int]],
    first: dict[str, Any],
    second: dict[str, Any],
) -> None:
    score, encoded = evaluate(make_encoder(**first))
    other, encoded_too = evaluate(make_encoder(**second))
    assert encoded > 0 and encoded_too > 0
    for given, expected in ((first, score), (second, other)):
        assert evaluate(make_encoder(**given)) == (expected, 0)


def test_two_adapters_of_one_name_and_weights_that_change_in_their_folder(
    make_encoder: Make, evaluate: Callable[[Any], tuple[float, int]], tmp_path: Path,
    tiny_model: Path,
) -> None:  # fmt: skip
    for number in range(2):
        lora = adapter(tmp_path / str(number) / "adapter", bytes([number]))
        assert evaluate(make_encoder(lora_request=lora))[1] > 0
    assert evaluate(make_encoder())[1] > 0
    (tiny_model / "model.safetensors").write_bytes(b"trained")
    assert evaluate(make_encoder())[1] > 0
    assert evaluate(make_encoder())[1] == 0


def test_a_setting_that_is_changed_on_the_object(
    make_encoder: Make, evaluate: Callable[[Any], tuple[float, int]]
) -> None:
    encoder = make_encoder(prompt_dict={"query": "a "})
    evaluate(encoder)
    before = encoder.total.texts
    encoder.prompts_dict = encoder.model_prompts = {"query": "b "}
    assert evaluate(encoder)[1] > before
    encoder = make_encoder(**INSTRUCTIONS, instruction_template="{instruction}")
    plain = name(encoder)
    encoder.prompt_priority = [PromptSource.DEFAULT_TASK_PROMPT]
    assert name(encoder) != plain


def test_a_model_meta_with_a_branch_is_pinned(make_encoder: Make, tiny_model: Path) -> None:
    """mteb would look under the branch, or under the revision that was evaluated last."""
    for revision in (None, "main", "no_revision_available"):
        overwrites = {"name": str(tiny_model), "revision": revision}
        meta = make_encoder(ModelMeta.create_empty(overwrites=overwrites)).mteb_model_meta
        assert meta is not None and meta.revision == make_encoder().identity.revision


def test_what_the_model_meta_says_already_stays(make_encoder: Make, tiny_model: Path) -> None:
    overwrites = {"name": str(tiny_model), "experiment_kwargs": {"note": "x", "prompt_dict": "y"}}
    meta = ModelMeta.create_empty(overwrites=overwrites)
    encoder = make_encoder(meta, dtype="auto", max_model_len=9)
    assert encoder.mteb_model_meta is not None
    expected = {"note": "x", "prompt_dict": "y", "max_model_len": 9}
    assert encoder.mteb_model_meta.experiment_kwargs == expected
    assert meta.experiment_kwargs == overwrites["experiment_kwargs"]


def test_as_a_loader_of_mtebs(tiny_model: Path, tmp_path: Path, fake_engines: Engines) -> None:
    """`ModelMeta.load_model` sets `mteb_model_meta`, with keyword arguments as they are."""
    meta = ModelMeta.create_empty(
        overwrites={"name": str(tiny_model), "loader": VllmEncoderWrapper}
    )
    names = set()
    for prompt in ("a/b", "a:b", "a_b"):
        given: Any = {"prompt_dict": {"query": prompt}, "cache_path": str(tmp_path / "cache")}
        encoder = meta.load_model(make_engine=None, **given)
        names.add(name(encoder))
    assert len(names) == 3


RERANKERS: list[dict[str, Any]] = [
    {},
    {"query_prefix": "q: "},
    {"document_prefix": "q: "},
    {"query_suffix": "q: "},
    {"document_suffix": "q: "},
    {"query_prefix": "q_ "},
    {"chat_template": "{{ messages[0].content }}"},
    {"chat_template": "{{ messages[1].content }}"},
    {"max_model_len": 32},
    {"dtype": "bfloat16"},
]


def test_rerankers(make_cross_encoder: MakeCross, tmp_path: Path) -> None:
    make = functools.partial(make_cross_encoder, dtype="auto")
    files = [{"chat_template": template(tmp_path / text, text + "{# x #}")} for text in "ab"]
    names = [name(make(**given)) for given in [*RERANKERS, *files]]
    assert names[0] is None and len(set(names)) == len(names)
    encoder = make()
    encoder.query_prefix = "q: "
    assert name(encoder) == names[1]


def test_mteb_answers_for_the_same_reranker_and_for_no_other(
    make_cross_encoder: MakeCross, evaluate: Callable[[Any], tuple[float, int]]
) -> None:
    given = [one for one in RERANKERS if "dtype" not in one]
    scores = [evaluate(make_cross_encoder(**one)) for one in given]
    assert all(encoded > 0 for _, encoded in scores)
    again = [evaluate(make_cross_encoder(**one)) for one in given]
    assert again == [(score, 0) for score, _ in scores]


@pytest.mark.parametrize(
    "values",
    [
        (1, "1", 1.5, "1.5", True, "True", None, "None", float("inf"), "inf", "nan"),
        ("a", "A", "a ", "a_", "a-", "a--", "a.", "", " ", "_", "-"),
        ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, [1], ["a", 1], ["a1"], '{"a":1}'),
        (
            "x" * 40,
            "x" * 41,
            "x" * 42,
            "x__y_1",
            "x-y-1",
            "..",
            "../x",
            "C:\\x",
            "\ud800",
            "ä",
            "ö",
        ),
        ({}, [], {"a": {}}, {"a": None}, {"a": []}),
    ],
)
def test_no_two_values_are_written_alike(values: tuple[Any, ...]) -> None:
    written = [str(readable(value, "x")) for value in values]
    assert len(set(written)) == len(written)
    assert all(len(text) <= 40 and text.isascii() and text for text in written)


def test_a_meta_that_says_all_is_not_copied() -> None:
    meta = ModelMeta.create_empty(overwrites={"name": "a/b", "revision": "r"})
    assert experiment_meta(meta, {}, "r") is meta and experiment_meta(meta, {}) is meta
    other = experiment_meta(meta, {"prompt_dict": {"query": "q: "}}, "s")
    assert other.revision == "s" and meta.experiment_kwargs is None
    json.dumps(other.to_dict(), default=str)  # as mteb writes it


@pytest.mark.engine
def test_with_the_real_model(
    real_encoder: Callable[..., VllmEncoderWrapper], evaluate: Callable[[Any], tuple[float, int]]
) -> None:
    """The README's snippet, run again with other prompts, and without a cache of vectors."""
    given: list[dict[str, Any]] = [
        {"prompt_dict": {"query": "reverse: "}},
        {"prompt_dict": {"query": "the moon and the tides: "}},
        {},
    ]
    runs = [evaluate(real_encoder(**one)) for one in given]
    assert all(texts > 0 for _, texts in runs)
    for one, (score, _) in zip(given, runs, strict=True):
        assert evaluate(real_encoder(**one, on_miss="raise")) == (score, 0)
