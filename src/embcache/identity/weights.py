"""Which weights a model name stands for: a commit of a hub snapshot, or a directory's content.

Nothing here imports vllm or reads more of a model than its identity needs.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

from embcache.errors import ModelNotFoundError
from embcache.identity.home import absolute_path, user_path, working_directory
from embcache.identity.hub import (
    cached_snapshot,
    commit_of_snapshot,
    edited_files,
    pin,
)
from embcache.identity.identity import LOCAL
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import hash_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """A model whose weights are settled: a commit on the hub, or a directory's content.

    Attributes:
        name: Hub name or directory, as the user gave it; the hub name for a hub's snapshot.
        identity_name: Hub name; `local` for a directory, whose name decides no vector.
        revision: Commit of the hub snapshot, or hash over the directory's files.
        is_local: Whether it is a directory, and not as the hub has it.
        snapshot: Directory of the hub snapshot to load from, because the hub is out of reach or
            because it was given, or because it is no longer as the hub gave it; else None.
    """

    name: str
    identity_name: str
    revision: str
    is_local: bool
    snapshot: str | None = None

    @property
    def directory(self) -> Path | None:
        """Where the engine loads it from; None where it asks the hub."""
        if self.snapshot is not None:
            return Path(self.snapshot)
        return absolute_path(self.name, "model") if self.is_local else None

    @property
    def load_from(self) -> tuple[str, str | None]:
        """Model and revision for the engine: a directory and None if the hub is not needed."""
        if self.directory is not None:
            return str(self.directory), None
        return self.name, self.revision


def resolve_model(
    model: str,
    revision: str | None = None,
    memo: Memo | None = None,
    token: str | bool | None = None,
) -> ModelSource:
    """Find out which weights a name and revision stand for, without an engine.

    A directory is identified by its files' content; but a snapshot in a hub cache is the hub's
    commit, whether it is given by the hub's name or as a directory, unless a file in it was
    edited. A hub name is resolved to a commit: a full commit hash as it is, anything else by the
    hub, or by the local hub cache where the hub is out of reach or `HF_HUB_OFFLINE` is set.

    Args:
        model: Hub name, or directory.
        revision: Branch, tag or commit; None for `main`. Without meaning for a directory.
        memo: Remembers the hashes of a directory's files; None for the default one.
        token: The hub's token, for a gated or private model; None for the one that is saved.

    Raises:
        ModelNotFoundError: There is no such directory, repository or revision; or the hub is out
            of reach and the model is not in the local hub cache; or a file cannot be read.
    """
    memo = memo or Memo()
    path = user_path(model, "model")
    if path.is_dir():
        if not any(path.glob("*.json")) and not any(path.glob("*.gguf")):
            raise ModelNotFoundError(
                f"model={model!r} is a directory without a config.json. Give the directory that "
                "holds the model's config, tokenizer and weights."
            )
        name, content = identify_directory(path, memo, exports=False)
        if name == LOCAL:
            return ModelSource(model, LOCAL, content, True)
        return ModelSource(name, name, content, False, str(path.resolve()))
    if path.is_file():
        raise ModelNotFoundError(
            f"model={model!r} is a file. Give the directory that holds the model, or a hub name."
        )
    commit = pin(model, revision, token=token)
    here = cached_snapshot(model, commit.sha)
    # Large files are not read for this: under the hub's name they never were, and take a while.
    if here is not None and _is_edited(here, memo, weights=False):
        content = hash_directory(here, memo, exports=False)
        return ModelSource(model, LOCAL, content, True, str(here))
    return ModelSource(model, model, commit.sha, False, commit.snapshot)


def identify_directory(path: Path, memo: Memo, *, exports: bool = True) -> tuple[str, str]:
    """Say what a model's directory is in an identity.

    Args:
        path: The directory.
        memo: Remembers the hashes of its files.
        exports: Whether the folders `onnx` and `openvino` count, see `hash_directory`.

    Returns:
        Hub name and commit of a snapshot in a hub cache, if no file in it was edited; else
        `local`, and a hash over the files.

    Raises:
        ModelNotFoundError: A file cannot be read.
    """
    commit = commit_of_snapshot(path)
    if commit is None or _is_edited(path, memo, weights=True):
        return LOCAL, hash_directory(path, memo, exports=exports)
    return commit.repo, commit.sha


def _is_edited(snapshot: Path, memo: Memo, *, weights: bool) -> bool:
    edited = edited_files(snapshot, memo, weights=weights)
    if edited:
        logger.warning(
            "%s is not as the hub gave it (%s): it is taken as a directory of its own. "
            "To have the hub's again, remove it and download it anew.",
            snapshot,
            ", ".join(edited[:5]),
        )
    return bool(edited)


def pin_adapter(lora_request: Any, memo: Memo) -> tuple[str, str]:
    """Find a LoRA adapter and hash its files.

    Args:
        lora_request: The adapter's directory, its hub name, or vLLM's LoRARequest, of which only
            the path counts: name and number change no vector.
        memo: Remembers the files' hashes.

    Returns:
        The directory to load from, and `local <hash over its files>` for the identity.

    Raises:
        ModelNotFoundError: The directory holds no adapter; or it is no directory, and there is no
            adapter of that name on the hub or in the local hub cache.
    """
    given = os.fspath(getattr(lora_request, "lora_path", lora_request))
    path = user_path(given, "lora_request")
    if not path.is_dir():
        path = _download(given)
    if not (path / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"lora_request={given!r} has no adapter_config.json. Give the directory that PEFT "
            "saved the adapter to."
        )
    return str(path.absolute()), f"{LOCAL} {hash_directory(path, memo, exports=False)}"


def _download(name: str) -> Path:
    """The snapshot of a hub repository; the local one where the hub is out of reach."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"lora_request={name!r} is no directory here (working directory: "
            f"{working_directory()}), and the hub has none of that name or is out of reach "
            f"({type(error).__name__}: {error})."
        ) from error
