"""The encoder that filled a space, made again from what the space says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embcache.encoders.arguments import CacheArguments
from embcache.errors import ConfigError
from embcache.identity.identity import LOCAL, SPEED_ARGUMENTS, Identity
from embcache.identity.named_files import holds_a_hash
from embcache.pipeline.request import TextRequest
from embcache.store import Space

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper


def embed_as(
    space: Space, text: str, prompt: str = "", model: str | None = None, **engine: Any
) -> npt.NDArray[np.float32]:
    """Embed a text as the rows of a space were embedded; nothing is written.

    vLLM is started for it, which takes a while, and closed afterwards.

    Args:
        space: A space of vectors that `VllmEncoderWrapper` filled.
        text: The text, without the prompt.
        prompt: Put in front of the text.
        model: Hub name or directory of the model; None for the one that the space notes.
        **engine: Arguments of the engine that change no vector (`gpu_memory_utilization`, say);
            those that do are the space's own. Besides, arguments that name files (`lora_request`,
            `tokenizer`, `hf_config_path`) say where those are, if it has such. `enforce_eager` is
            True unless given.

    Returns:
        `(dim,) float32`.

    Raises:
        ConfigError: The space was filled by another encoder; the model's weights are not those
            that filled it; an argument may change the vector; or the space needs a LoRA adapter,
            tokenizer or other files, and it is not given where they are.
        ModelNotFoundError: There is no such model here, on the hub, or in the local hub cache.
        InputError: The text is no `str`, has no UTF-8 form, or is refused by the tokenizer.
        EngineError: vLLM does not start, fails, or returns NaN or infinity.
        ChangedModelError: vLLM returns other vectors for the space's canaries than it has.
    """
    encoder = _encoder_of(space, model, engine)
    try:
        request = TextRequest(texts=[text], prompt=prompt, show_progress=False)
        vectors, _ = encoder.open_pipeline().encode(request)
        vector: npt.NDArray[np.float32] = vectors[0]
        return vector
    finally:
        encoder.cleanup()


def _encoder_of(space: Space, model: str | None, engine: Mapping[str, Any]) -> VllmEncoderWrapper:
    identity = space.identity
    if identity.engine != "vllm":
        raise ConfigError(
            f"{space.location} was filled by {identity.engine}, not by VllmEncoderWrapper, so "
            "embcache cannot embed new texts for it."
        )
    if own := [name for name in engine if name in CacheArguments.names()]:
        raise ConfigError(  # without the value: it may be a secret
            f"{own[0]} is no argument of the engine; where {space.location} lies and how it is "
            "used is settled. Leave it out."
        )
    pinned = [name for name, value in identity.arguments.items() if holds_a_hash(value)]
    if changing := [name for name in engine if name not in (*SPEED_ARGUMENTS, *pinned)]:
        raise ConfigError(
            f"{changing[0]}={engine[changing[0]]!r} may change vectors, and those of "
            f"{space.location} are made with what the space itself says. Leave it out."
        )
    if missing := [name for name in pinned if name not in engine]:
        raise ConfigError(
            f"{space.location} was filled with {missing[0]}={identity.arguments[missing[0]]}, a "
            f"hash of files: where they are it does not say. Give {missing[0]}=, their directory."
        )
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper  # and mteb, which takes seconds

    encoder = VllmEncoderWrapper(
        model or space.metadata.model,
        None if identity.model == LOCAL else identity.revision,
        dtype=identity.dtype,
        cache_path=str(space.location.parent),  # for its canaries
        storage_options=space.location.storage_options,
        read_only=True,
        upstream=[],  # the space is all that is asked about
        # For one text, compiling would take longer than encoding.
        **{"enforce_eager": True, **_given(identity), **engine},
    )
    if encoder.identity != identity:
        raise ConfigError(_not_the_one(space, encoder.identity, model or space.metadata.model))
    return encoder


def _given(identity: Identity) -> dict[str, Any]:
    """The identity's arguments, without the commits of code that were found out, not given."""
    return {
        name: value
        for name, value in identity.arguments.items()
        if name != "tokenizer_code" and not (name == "code_revision" and isinstance(value, dict))
    }


def _not_the_one(space: Space, found: Identity, model: str) -> str:
    cached = space.identity
    differing: dict[str, tuple[Any, Any]] = {
        name: (value, getattr(found, name))
        for name, value in vars(cached).items()
        if value != getattr(found, name)
    }
    listed = "; ".join(f"{name} {was!r}, now {now!r}" for name, (was, now) in differing.items())
    return (
        f"{model} is not the model that filled {space.location}: {listed}. Give model=, the "
        "directory of the one that was."
    )
