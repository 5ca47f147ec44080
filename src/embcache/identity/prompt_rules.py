"""Which prompt a loaded mteb encoder puts in front of a text.

For mteb's own wrappers that is known: the rules here follow their `encode`, through their own
methods where there are any. What is known is the prompt's text, so texts are shared between tasks
that use the same one. For every other class, and where a subclass or instance has an `encode` of
its own, the call's circumstances stand in for the prompt: task, subset, split and prompt type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embcache.errors import ConfigError
from embcache.identity.identity import (
    ITEM_ALONE,
    PREFIXED_PAIR,
    PROMPT_AND_TEXT,
    Identity,
    PromptHandling,
)
from embcache.identity.live_model import sentence_transformer

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

# What encode_document looks for in a SentenceTransformer's prompts, in this order.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Call:
    """The circumstances of one `encode`, as mteb passes them.

    Attributes:
        task_metadata: Metadata of the task.
        prompt_type: Query, document or None.
        hf_subset: Subset of the task's data set.
        hf_split: Split of the task's data set.
    """

    task_metadata: TaskMetadata
    prompt_type: PromptType | None
    hf_subset: str
    hf_split: str


@dataclass(frozen=True)
class AppliedPrompt:
    """The prompt that an encoder applies, or what stands for it.

    Attributes:
        key: What goes into the key in the prompt's place.
        text: The prompt itself, which is recorded beside the vector; None where it is not known.
    """

    key: str
    text: str | None


GIVEN = PromptHandling("applied_prompt", "recorded")
PREFIX = PromptHandling("prefix", "recorded")
INSTRUCTION = PromptHandling("instruction", "recorded")
SENTENCE_TRANSFORMERS = PromptHandling("prompt of Sentence Transformers", "recorded")
# What stands in the key is the prompt together with the prompt type; the column has the prompt.
SENTENCE_TRANSFORMERS_TASK = PromptHandling("prompt and task of Sentence Transformers", "unknown")
CIRCUMSTANCES = PromptHandling("unknown: task, subset, split and prompt type", "unknown")

_HANDLINGS = {
    handling.name: handling
    for handling in (
        PROMPT_AND_TEXT,
        PREFIXED_PAIR,
        ITEM_ALONE,
        GIVEN,
        PREFIX,
        INSTRUCTION,
        SENTENCE_TRANSFORMERS,
        SENTENCE_TRANSFORMERS_TASK,
        CIRCUMSTANCES,
    )
}


def handling_of(identity: Identity) -> PromptHandling:
    """The prompt handling that an identity names.

    Args:
        identity: The identity of a space.

    Returns:
        One of the handlings that embcache knows. For any other name, of a newer embcache, say, a
        handling whose keys cannot be computed again, lest a right row is taken for a wrong one.
    """
    name = identity.prompt_handling
    return _HANDLINGS.get(name, PromptHandling(name, "unknown"))


@dataclass(frozen=True)
class PromptRule:
    """How a class of encoders finds its prompt.

    Attributes:
        handling: How prompt and text become the model's input, for the identity.
        apply: Returns the prompt that the encoder applies in a call.
    """

    handling: PromptHandling
    apply: Callable[[Call], AppliedPrompt]

    @property
    def known(self) -> bool:
        """Whether the class's prompts are known, and it reads nothing but `text`."""
        return self.handling is not CIRCUMSTANCES


def find_rule(
    encoder: Any, given: Callable[[TaskMetadata, PromptType | None], str] | None
) -> PromptRule:
    """The rule by which an encoder finds its prompts.

    Args:
        encoder: Any mteb encoder.
        given: A function of the user's that returns the prompt which the encoder applies; it
            takes precedence. None for none.

    Returns:
        The rule; where embcache does not know the encoder, one whose `known` is False.
    """
    from mteb.models import instruct_wrapper, sentence_transformer_wrapper, vllm_wrapper
    from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper

    if given is not None:
        return PromptRule(GIVEN, lambda call: _given(given, call))
    own = "encode" in getattr(encoder, "__dict__", {})
    encode = None if own else getattr(type(encoder), "encode", None)
    if encode is sentence_transformer_wrapper.SentenceTransformerEncoderWrapper.encode:
        inner = sentence_transformer(encoder)
        if inner is not None and _plain_entry_points(inner):
            if _ignores_task(inner):
                return PromptRule(SENTENCE_TRANSFORMERS, lambda call: _st(encoder, call))
            return PromptRule(SENTENCE_TRANSFORMERS_TASK, lambda call: _st_task(encoder, call))
    elif encode is instruct_wrapper.InstructSentenceTransformerModel.encode:
        if sentence_transformer(encoder) is not None:
            return PromptRule(INSTRUCTION, lambda call: _instruction(encoder, call))
    elif encode in (OpenAIAPIEncodeWrapper.encode, vllm_wrapper.VllmEncoderWrapper.encode):
        return PromptRule(PREFIX, lambda call: _prefix(encoder, call))
    return PromptRule(CIRCUMSTANCES, _circumstances)


def _given(function: Callable[[Any, Any], str], call: Call) -> AppliedPrompt:
    prompt = function(call.task_metadata, call.prompt_type)
    if not isinstance(prompt, str):
        raise ConfigError(
            f"applied_prompt returned {prompt!r} for task {call.task_metadata.name}; it must "
            'return the prompt that the model applies, "" for none.'
        )
    return AppliedPrompt(prompt, prompt)


def _circumstances(call: Call) -> AppliedPrompt:
    key = {
        "task": call.task_metadata.name,
        "subset": call.hf_subset,
        "split": call.hf_split,
        "prompt_type": _value(call.prompt_type),
    }
    return AppliedPrompt(json.dumps(key, sort_keys=True), None)


def _st(encoder: Any, call: Call) -> AppliedPrompt:
    """The prompt that mteb's SentenceTransformerEncoderWrapper, or else the model, applies."""
    from mteb.models.abs_encoder import get_prompt_name

    prompt = None
    if encoder.model_prompts is not None:
        name = get_prompt_name(encoder.model_prompts, call.task_metadata, call.prompt_type)
        prompt = encoder.model_prompts.get(name)
    text = _st_default(encoder.model, call.prompt_type) if prompt is None else prompt
    return AppliedPrompt(text, text)


def _st_default(inner: Any, prompt_type: PromptType | None) -> str:
    prompts = inner.prompts or {}
    names: tuple[Any, ...] = ()
    if hasattr(inner, "encode_query"):  # Sentence Transformers 5
        names = {"query": ("query",), "document": _DOCUMENT_PROMPTS}.get(_value(prompt_type), ())
    for name in (*names, inner.default_prompt_name):
        if name in prompts:
            return prompts[name] or ""
    return ""


def _st_task(encoder: Any, call: Call) -> AppliedPrompt:
    applied = _st(encoder, call)
    key = json.dumps({"prompt": applied.key, "task": _value(call.prompt_type)}, sort_keys=True)
    return AppliedPrompt(key, applied.text)


def _instruction(encoder: Any, call: Call) -> AppliedPrompt:
    prompt = encoder.get_task_instruction(call.task_metadata, call.prompt_type)
    if not encoder.apply_instruction_to_passages and _value(call.prompt_type) == "document":
        prompt = None
    text = _st_default(encoder.model, None) if prompt is None else prompt
    return AppliedPrompt(text, text)


def _prefix(encoder: Any, call: Call) -> AppliedPrompt:
    prompt = ""
    if encoder.prompts_dict is not None:
        if encoder.use_instructions:
            prompt = encoder.get_task_instruction(call.task_metadata, call.prompt_type)
            if not encoder.apply_instruction_to_passages and _value(call.prompt_type) == "document":
                prompt = ""
        else:
            name = encoder.get_prompt_name(call.task_metadata, call.prompt_type)
            prompt = "" if name is None else encoder.prompts_dict.get(name, "")
    return AppliedPrompt(prompt, prompt)


def _plain_entry_points(inner: Any) -> bool:
    """Whether the SentenceTransformer's own encode methods are called, not a subclass's."""
    from sentence_transformers import SentenceTransformer

    names = ("encode", "encode_query", "encode_document")
    return all(
        name not in vars(inner)
        and getattr(type(inner), name, None) is getattr(SentenceTransformer, name, None)
        for name in names
    )


def _ignores_task(inner: Any) -> bool:
    """Whether encode_query and encode_document differ in nothing but the prompt.

    Not where a router, a length for queries, a chat template or somebody else's module may use
    the task, too.
    """
    for module in (inner, *inner):
        kind = type(module)
        if not kind.__module__.startswith("sentence_transformers.") or kind.__name__ == "Router":
            return False
        settings = ("query_length", "document_length", "query_expansion")
        if any(getattr(module, name, None) is not None for name in settings):
            return False
        if set(getattr(module, "modality_config", None) or ()) - {"text"}:
            return False
    return True


def _value(prompt_type: PromptType | None) -> Any:
    return None if prompt_type is None else prompt_type.value
