"""The rules say what mteb's wrappers apply: compared with what those really hand to the model."""

from __future__ import annotations

from typing import Any

import mteb
import pytest
from mteb.models import OpenAIAPIEncodeWrapper, SentenceTransformerEncoderWrapper
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.vllm_wrapper import VllmEncoderWrapper
from mteb.types import PromptType

from embcache.identity.prompt_rules import Call, find_rule
from tests.conftest import encode
from tests.fakes import FakeModel

SENTENCE_TRANSFORMERS = "prompt of Sentence Transformers"
UNKNOWN = "unknown: task, subset, split and prompt type"
TASKS = ("STS12", "NFCorpus", "Banking77Classification")
KINDS = (PromptType.query, PromptType.document, None)


def calls() -> list[Call]:
    tasks = [mteb.get_task(name).metadata for name in TASKS]
    return [Call(task, kind, "default", "test") for task in tasks for kind in KINDS]


def bare(kind: type[Any], **attributes: Any) -> Any:
    """A wrapper without its constructor, which would load or connect."""
    wrapper = kind.__new__(kind)
    vars(wrapper).update(attributes)
    return wrapper


@pytest.fixture(scope="module")
def sentence_transformer(model_path: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_path, device="cpu")


def applied_by(model: Any, wrapper: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> str:
    """The prompt that reaches the transformer's tokenizer, as Sentence Transformers joins it."""
    seen: list[Any] = []
    inner = model._inference

    def spy(inputs: Any, *, prompt: Any = None, **kwargs: Any) -> Any:
        seen.append(prompt)
        return inner(inputs, prompt=prompt, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "_inference", spy)
        encode(wrapper, ["a"], task_metadata=call.task_metadata, prompt_type=call.prompt_type)
    return seen[0] or ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_prompts",
    [
        None,
        {"query": "query: ", "document": "passage: "},
        {"NFCorpus-query": "nf: ", "STS": "sts: ", "Banking77Classification": ""},
    ],
)
@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({}, None),
        ({"query": "Q: ", "document": "D: ", "other": "O: "}, "other"),
        ({"passage": "P: "}, "passage"),
    ],
)
def test_sentence_transformers(
    model_prompts: Any,
    prompts: Any,
    default: Any,
    sentence_transformer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sentence_transformer, "prompts", dict(prompts))
    monkeypatch.setattr(sentence_transformer, "default_prompt_name", default)
    wrapper = SentenceTransformerEncoderWrapper(sentence_transformer, model_prompts=model_prompts)
    rule = find_rule(wrapper, None)
    assert rule.handling.name == SENTENCE_TRANSFORMERS and rule.known
    for call in calls():
        expected = applied_by(sentence_transformer, wrapper, call, monkeypatch)
        assert rule.apply(call).text == expected, call
        assert rule.apply(call).key == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to_passages", [True, False])
@pytest.mark.parametrize("prompts", [None, {"query": "find", "STS": "compare"}])
def test_instructions(
    to_passages: bool, prompts: Any, sentence_transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = bare(
        InstructSentenceTransformerModel,
        model=sentence_transformer,
        instruction_template="Instruct: {instruction}\n",
        apply_instruction_to_passages=to_passages,
        prompts_dict=prompts,
    )
    rule = find_rule(wrapper, None)
    assert rule.handling.name == "instruction"
    for call in calls():
        expected = applied_by(sentence_transformer, wrapper, call, monkeypatch)
        assert rule.apply(call).text == expected, call


@pytest.mark.parametrize("use_instructions", [True, False])
@pytest.mark.parametrize("to_passages", [True, False])
@pytest.mark.parametrize("prompts", [None, {"query": "find", "STS12": "compare"}])
def test_endpoints(
    use_instructions: bool, to_passages: bool, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = bare(
        OpenAIAPIEncodeWrapper,
        instruction_template="Instruct: {instruction}\n",
        use_instructions=use_instructions,
        apply_instruction_to_passages=to_passages,
        prompts_dict=prompts,
        use_chat_template=False,
    )
    sent: list[str] = []
    monkeypatch.setattr(wrapper, "_get_embeddings", lambda texts: sent.extend(texts) or [[0.0]])
    rule = find_rule(wrapper, None)
    assert rule.handling.name == "prefix"
    for call in calls():
        sent.clear()
        encode(wrapper, ["a"], task_metadata=call.task_metadata, prompt_type=call.prompt_type)
        assert rule.apply(call).text == sent[0].removesuffix("a"), call


def test_mtebs_own_vllm_wrapper_is_known() -> None:
    wrapper = bare(VllmEncoderWrapper, prompts_dict=None, use_instructions=False)
    assert find_rule(wrapper, None).apply(calls()[0]).text == ""


def test_others_go_by_the_circumstances() -> None:
    rule = find_rule(FakeModel(), None)
    assert rule.handling.name == UNKNOWN and not rule.known
    applied = [rule.apply(call) for call in calls()]
    assert len({prompt.key for prompt in applied}) == 9
    assert all(prompt.text is None for prompt in applied)


def test_a_subclass_or_instance_with_an_encode_of_its_own_is_unknown(
    sentence_transformer: Any,
) -> None:
    class Mine(SentenceTransformerEncoderWrapper):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            return super().encode(inputs, **kwargs)

    class Inherited(SentenceTransformerEncoderWrapper):
        pass

    attributes = {"model": sentence_transformer, "model_prompts": None}
    assert find_rule(bare(Inherited, **attributes), None).handling.name == SENTENCE_TRANSFORMERS
    assert find_rule(bare(Mine, **attributes), None).handling.name == UNKNOWN
    patched = bare(Inherited, encode=print, **attributes)
    assert find_rule(patched, None).handling.name == UNKNOWN


def test_a_sentence_transformer_with_an_encode_of_its_own_is_unknown(
    sentence_transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = bare(
        SentenceTransformerEncoderWrapper, model=sentence_transformer, model_prompts=None
    )
    monkeypatch.setattr(sentence_transformer, "encode_query", print, raising=False)
    assert find_rule(wrapper, None).handling.name == UNKNOWN


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[0], "query_length", 12),
        lambda model: model.append(_foreign_module()),
    ],
    ids=["a length for queries", "a module of others"],
)
def test_models_that_may_use_the_task(change: Any, model_path: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_path, device="cpu")
    change(model)
    wrapper = bare(SentenceTransformerEncoderWrapper, model=model, model_prompts=None)
    rule = find_rule(wrapper, None)
    assert rule.handling.name == "prompt and task of Sentence Transformers"
    query, document, neither = (rule.apply(call) for call in calls()[:3])
    assert len({query.key, document.key, neither.key}) == 3
    assert query.text == document.text == ""


def _foreign_module() -> Any:
    import torch

    class Foreign(torch.nn.Module):
        def forward(self, features: Any) -> Any:
            return features

    return Foreign()
