"""mteb's own result cache and `CachedEncoder`: what was changed of a loaded model counts."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from mteb.cache import ResultCache
from mteb.mocks.mock_tasks import MockRetrievalTask
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper
from sentence_transformers import SentenceTransformer

from embcache import CachedEncoder
from tests.fakes import FakeModel, fake_vector


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CachedEncoder]:
    return lambda model, **kwargs: CachedEncoder(model, **{"cache_path": tmp_path / "c", **kwargs})


Make = Callable[..., CachedEncoder]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    from tests.models import save_bert

    return save_bert(tmp_path / "models" / "bert")


@pytest.fixture
def load(folder: str) -> Callable[..., SentenceTransformerEncoderWrapper]:
    def make(**kwargs: Any) -> SentenceTransformerEncoderWrapper:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SentenceTransformerEncoderWrapper(folder, device="cpu", **kwargs)

    return make


Load = Callable[..., SentenceTransformerEncoderWrapper]


def kwargs_of(encoder: CachedEncoder) -> dict[str, Any] | None:
    kwargs = encoder.mteb_model_meta.experiment_kwargs
    return None if kwargs is None else dict(kwargs)


class Endpoint(FakeModel):
    """A model of the user's, which puts a prefix in front of every text."""

    def __init__(self, prefix: str = "", timeout: float = 1, api_key: str = "", **kw: Any) -> None:
        super().__init__("org/endpoint", **kw)
        self.prefix, self.timeout, self.api_key = prefix, timeout, api_key

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        self.calls.append(texts)
        return np.stack([fake_vector(self.prefix + text, self.dim) for text in texts])


# As it was loaded


def test_a_loaded_model_is_filed_as_without_a_cache(make: Make, load: Load) -> None:
    for model in (load(), FakeModel(), FakeModel(experiment_kwargs={"a": 1}), Endpoint()):
        theirs, ours = model.mteb_model_meta, make(model).mteb_model_meta
        assert ours.name == theirs.name
        assert ours.experiment_kwargs == theirs.experiment_kwargs
        if not isinstance(model, SentenceTransformerEncoderWrapper):
            assert ours is theirs


def test_the_real_model_as_mteb_loads_it(make: Make, model_path: str) -> None:
    model = SentenceTransformerEncoderWrapper(model_path, device="cpu")
    assert kwargs_of(make(model)) is None
    assert kwargs_of(make(model, truncate_dim=9)) == {"embed_dim": 9}


def test_it_is_loaded_twice_once(
    make: Make, load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "embcache")
    for _ in range(2):
        assert kwargs_of(make(load())) is None
    assert caplog.text.count("once more") == 1


def test_the_callers_random_numbers_are_left_alone(make: Make, load: Load) -> None:
    encoder = make(load())
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert kwargs_of(encoder) is None
    assert torch.rand(1) == expected


def test_a_model_too_large_to_be_loaded_twice_counts_as_changed(
    make: Make, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embcache.encoders.live_settings.os.sysconf", lambda name: 1)
    kwargs = kwargs_of(make(load()))
    assert kwargs is not None and "weights" in kwargs


# As it was changed


def shorter(model: Any) -> None:
    model.model.max_seq_length = 4


def prompted(model: Any) -> None:
    model.model.prompts = model.model_prompts = {"query": "q: ", "document": "d: "}


def prompted_otherwise(model: Any) -> None:
    model.model.prompts = model.model_prompts = {"query": "q_ ", "document": "d: "}


def default_prompt(model: Any) -> None:
    model.model.prompts = {**model.model.prompts, "x": "x: "}
    model.model.default_prompt_name = "x"


def trained(model: Any) -> None:
    with torch.no_grad():
        next(model.model.parameters()).mul_(1.5)


def cut(model: Any) -> None:
    model.model.truncate_dim = 7


def last_token(model: Any) -> None:
    model.model[1].pooling_mode = "lasttoken"


def half(model: Any) -> None:
    model.model.half()


CHANGES = [shorter, prompted, prompted_otherwise, default_prompt, trained, cut, last_token, half]


def test_every_change_is_another_folder(make: Make, load: Load) -> None:
    names = [make(load()).mteb_model_meta.experiment_name]
    for change in CHANGES:
        model = load()
        encoder = make(model)
        before = encoder.mteb_model_meta.experiment_name
        change(model)
        names.append(encoder.mteb_model_meta.experiment_name)
        assert before is None and names[-1] == make(model).mteb_model_meta.experiment_name
    assert len(set(names)) == len(names), names
    assert make(load()).mteb_model_meta.experiment_name is None


def test_what_was_changed_is_named(make: Make, load: Load) -> None:
    model = load()
    shorter(model)
    kwargs = kwargs_of(make(model))
    assert kwargs is not None and kwargs.keys() == {"max_seq_length", "state"}
    assert kwargs["max_seq_length"] == 4
    assert kwargs["state"].startswith("model.0-")  # the module that has it
    trained(model)
    kwargs = kwargs_of(make(model))
    assert kwargs is not None and kwargs.keys() == {"max_seq_length", "state", "weights"}


def hooked(model: Any) -> None:
    model.model[1].register_forward_hook(lambda module, given, result: result)


def cut_on_the_left(model: Any) -> None:
    model.model.tokenizer.truncation_side = "left"


def test_what_no_setting_shows_is_another_folder_too(make: Make, load: Load) -> None:
    for change in (hooked, cut_on_the_left):
        model = load()
        make(model)
        change(model)
        kwargs = kwargs_of(make(model))
        assert kwargs is not None and kwargs.keys() == {"state"}


def test_prompts_of_mtebs_wrapper(make: Make, load: Load) -> None:
    names = {
        make(load(model_prompts=prompts)).mteb_model_meta.experiment_name
        for prompts in (None, {"query": "a/b"}, {"query": "a_b"}, {"query": "a:b"})
    }
    assert len(names) == 4 and None in names


def test_a_folder_that_is_written_anew(make: Make, load: Load, folder: str) -> None:
    from tests.models import save_bert

    before = make(load()).mteb_model_meta
    shutil.rmtree(folder)
    save_bert(Path(folder), seed=1)
    after = make(load()).mteb_model_meta
    assert before.revision != after.revision
    assert before.experiment_kwargs is None and after.experiment_kwargs is None


def test_models_without_a_name(make: Make, folder: str) -> None:
    """mteb files all of them under the same name, which is none."""
    names = set()
    for scale in (1, 2):
        model = SentenceTransformer(folder, device="cpu")
        with torch.no_grad():
            next(model.parameters()).mul_(scale)
        meta = make(model, identity={"model": "mine"}).mteb_model_meta
        assert meta.name == "no_model_name/available"
        names.add(meta.experiment_name)
    assert len(names) == 2 and None not in names


def test_a_module_of_the_users_own(make: Make) -> None:
    """Nothing says what its weights are at the revision that its name has."""
    model = FakeModel()
    model.model = torch.nn.Linear(2, 2)
    names = {make(model).mteb_model_meta.experiment_name}
    with torch.no_grad():
        model.model.weight.add_(1)
    names.add(make(model).mteb_model_meta.experiment_name)
    assert len(names) == 2 and None not in names


def test_an_endpoint_of_mtebs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIAPIEncodeWrapper, "_verify_server", lambda self: None)

    def name(**kwargs: Any) -> str | None:
        model = OpenAIAPIEncodeWrapper("http://localhost:1", "org/model", "secret", **kwargs)
        meta = make(model, identity={}).mteb_model_meta
        assert "secret" not in str(meta.to_dict())
        return meta.experiment_name

    assert name() is None and name(timeout=7, max_retries=1) is None
    assert name(max_length=9) == "max_length_9"
    template = {"prompt_dict": {}, "use_instructions": True}
    given: list[dict[str, Any]] = [
        {"prompt_dict": {"query": "a/b"}},
        {"prompt_dict": {"query": "a_b"}},
        {"use_chat_template": False},
        {**template, "instruction_template": "{instruction}"},
        {**template, "instruction_template": "{instruction}\n"},
        {**template, "instruction_template": lambda text, kind: text},
        {**template, "instruction_template": lambda text, kind: text + " "},
    ]
    assert len({name(**one) for one in given}) == len(given)


def test_parameters_of_a_class_of_the_users_own(make: Make) -> None:
    assert make(Endpoint(timeout=9, api_key="secret")).mteb_model_meta.experiment_name is None
    assert kwargs_of(make(Endpoint("query"))) == {"prefix": "query"}
    assert kwargs_of(make(Endpoint(dim=4))) == {"dim": 4}


def test_what_the_user_says_of_it(make: Make) -> None:
    given: list[dict[str, Any]] = [
        {},
        {"identity": {"server": "a"}},
        {"identity": {"server": "b"}},
        {"identity": {"server": "a", "x": 1}},
        {"applied_prompt": lambda *_: "a"},
        {"applied_prompt": lambda *_: "b"},
        {"truncate_dim": 4},
        {"truncate_dim": 4, "identity": {"server": "a"}},
    ]
    names = [make(FakeModel(), **one).mteb_model_meta.experiment_name for one in given]
    assert names[0] is None and len(set(names)) == len(names)
    model = FakeModel(experiment_kwargs={"a": 1})
    meta = make(model, identity={"server": 2}, truncate_dim=4).mteb_model_meta
    assert meta.experiment_kwargs is not None
    assert meta.experiment_kwargs.keys() == {"a", "identity", "embed_dim"}
    assert model.mteb_model_meta.experiment_kwargs == {"a": 1}


# With mteb's result cache on


def run(encoder: CachedEncoder, results: Path) -> tuple[float, int]:
    before = encoder.total.texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = ResultCache(results)
        result = mteb.evaluate(encoder, MockRetrievalTask(), cache=cache, show_progress_bar=False)
    return float(result.task_results[0].get_score()), encoder.total.texts - before


def test_mteb_answers_for_the_same_model_and_for_no_other(
    make: Make, load: Load, tmp_path: Path
) -> None:
    models = [load() for _ in range(4)]
    for change, model in zip((shorter, prompted, trained), models[1:], strict=True):
        change(model)
    scores = [run(make(model), tmp_path / "results") for model in models]
    assert all(texts > 0 for _, texts in scores)
    again = [run(make(model), tmp_path / "results") for model in models]
    assert again == [(score, 0) for score, _ in scores]


def test_a_model_that_is_changed_between_two_runs(make: Make, load: Load, tmp_path: Path) -> None:
    model = load()
    encoder = make(model)
    first = run(encoder, tmp_path / "results")
    shorter(model)
    assert run(encoder, tmp_path / "results")[1] > 0
    model.model.max_seq_length = 512
    assert run(encoder, tmp_path / "results") == (first[0], 0)


def test_the_results_of_mteb_itself_are_found(make: Make, tmp_path: Path) -> None:
    """A run without embcache, and then with it: the same folder."""
    model = FakeModel()
    first = run(make(model), tmp_path / "results")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = ResultCache(tmp_path / "results")
        calls = len(model.calls)
        plain = mteb.evaluate(model, MockRetrievalTask(), cache=cache, show_progress_bar=False)
    assert float(plain.task_results[0].get_score()) == first[0] and len(model.calls) == calls
