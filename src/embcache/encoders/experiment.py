"""What mteb's own result cache has to know of a model beside its name and revision.

mteb files a result under name, revision and `ModelMeta.experiment_kwargs`. It makes a folder's name
of the latter in which `a/b` and `a_b`, 1 and "1", or two long dicts may look the same. So what is
put there is plain already: a value as it is where nothing can be mistaken for it, otherwise its
readable beginning and a hash over all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embcache.identity.function_digest import digest, function_digest
from embcache.identity.identity import canonical

if TYPE_CHECKING:
    from mteb.models import ModelMeta

# No underscore, with which mteb joins names and values; nothing that reads as a number or constant.
_PLAIN = re.compile(r"(?!(?:True|False|None|nan|inf|Infinity|NaN)$)[A-Za-z][A-Za-z0-9.-]{0,39}")
_NO_NAME_PARTS = re.compile(r"[^A-Za-z0-9.]+")
_SECRET = "storage_options"
_SHOWN = 24  # characters of a value that are shown: mteb hashes names of more than 200


def experiment_meta(
    meta: ModelMeta, settings: Mapping[str, Any], revision: str | None = None
) -> ModelMeta:
    """A ModelMeta under which mteb files results of these settings, and of no others.

    Args:
        meta: The model's ModelMeta; it is left as it is.
        settings: What the user set and what changes vectors, by name: values as `canonical` takes
            them, or functions. They replace settings of the same name that `meta` has.
        revision: The commit or content that the revision stands for; None to leave it.

    Returns:
        A copy, without the `storage_options` that `ModelMeta.load_model` notes in it; or `meta`
        itself, if it says all of this already.

    Raises:
        ConfigError: A value has no canonical form.
    """
    updates = _without_options(meta)
    if revision is not None and revision != meta.revision:
        updates["revision"] = revision
    if settings:
        shown = {name: readable(value, name) for name, value in sorted(settings.items())}
        kept = updates.get("experiment_kwargs", meta.experiment_kwargs)
        updates["experiment_kwargs"] = {**(kept or {}), **shown}
    return meta.model_copy(update=updates) if updates else meta


def _without_options(meta: ModelMeta) -> dict[str, Any]:
    """What of a ModelMeta must change, by field, so that it holds no storage options.

    `ModelMeta.load_model` keeps all that it gives to a wrapper, and mteb writes it to files.
    """
    changed: dict[str, Any] = {}
    for field in ("experiment_kwargs", "loader_kwargs"):
        given = getattr(meta, field) or {}
        if _SECRET in given:
            kept = {name: value for name, value in given.items() if name != _SECRET}
            changed[field] = kept or ({} if field == "loader_kwargs" else None)
    return changed


def prompt_settings(
    *,
    prompts: Mapping[str, str] | None,
    use_instructions: bool,
    template: str | Callable[..., str] | None,
    documents: bool,
    priority: Sequence[Any],
) -> dict[str, Any]:
    """What an encoder's prompts come to, by the names of its arguments.

    Args:
        prompts: Prompts by name; None where none are applied.
        use_instructions: Whether they are instructions.
        template: What becomes of an instruction.
        documents: Whether documents get instructions too.
        priority: Where mteb looks for an instruction, in this order.

    Returns:
        The settings that have an effect: nothing where no text gets a prompt.
    """
    given = {"prompt_dict": dict(prompts)} if prompts and any(prompts.values()) else {}
    if not use_instructions or prompts is None:
        return given
    from mteb.models.abs_encoder import AbsEncoder

    settings: dict[str, Any] = {**given, "use_instructions": True, "instruction_template": template}
    if not documents:
        settings["apply_instruction_to_documents"] = False
    if tuple(priority) != tuple(AbsEncoder.prompt_priority):
        settings["prompt_priority"] = list(priority)
    return settings


def readable(value: Any, name: str) -> Any:
    """A short form of a value in which no other value of that name is written.

    Args:
        value: As `canonical` takes it; or a function.
        name: What it is called, for the message of the error.

    Returns:
        Numbers, truth values and short plain words as they are. Of everything else the beginning,
        in ASCII letters, digits, dots and hyphens, and 12 hex digits over the whole.

    Raises:
        ConfigError: The value has no canonical form.
    """
    if callable(value):
        return f"function-{function_digest(value)}"
    value = canonical(value, name)
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    written = json.dumps(value, sort_keys=True, separators=(",", ":"))
    begin = value if isinstance(value, str) else written
    begin = _NO_NAME_PARTS.sub("-", begin).strip("-.")[:_SHOWN].strip("-.")
    return f"{begin or 'text'}-{digest(written)}"
