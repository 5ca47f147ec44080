"""Which weights a model name stands for: a commit of a hub snapshot, or a directory's content.

Nothing here imports vllm or reads more of a model than its identity needs.
"""

from __future__ import annotations

import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in __all__

from embcache.errors import ModelNotFoundError
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import hash_directory

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK = 8 * 2**20
# A file changed this recently may change again within its timestamp's resolution, unseen: it is
# hashed but not remembered (git's "racy" index entries have the same reason).
_SETTLED_AFTER_S = 2.0


@dataclass(frozen=True)
class ModelSource:
    """A model whose weights are settled: a commit on the hub, or a directory's content.

    Attributes:
        name: Hub name or directory, as the user gave it.
        identity_name: Hub name; `local` for a directory, whose name decides no vector.
        revision: Commit of the hub snapshot, or hash over the directory's files.
        is_local: Whether it is a directory.
        snapshot: Directory of the hub snapshot to load from if the hub is out of reach, else None.
    """

    name: str
    identity_name: str
    revision: str
    is_local: bool
    snapshot: str | None = None

    @property
    def load_from(self) -> tuple[str, str | None]:
        """Model and revision for the engine: a directory and None if the hub is not needed."""
        if self.is_local:
            return str(Path(self.name).expanduser()), None
        return (self.snapshot, None) if self.snapshot else (self.name, self.revision)


def resolve_model(model: str, revision: str | None = None, memo: Memo | None = None) -> ModelSource:
    """Find out which weights a name and revision stand for, without an engine.

    A directory is identified by its files' content. A hub name is resolved to a commit: a full
    commit hash as it is, anything else by the hub, or by the local hub cache where the hub is
    out of reach or `HF_HUB_OFFLINE` is set.

    Args:
        model: Hub name, or directory.
        revision: Branch, tag or commit; None for `main`. Without meaning for a directory.
        memo: Remembers the hashes of a directory's files; None for the default one.

    Raises:
        ModelNotFoundError: There is no such directory, repository or revision; or the hub is out
            of reach and the model is not in the local hub cache.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not any(path.glob("*.json")) and not any(path.glob("*.gguf")):
            raise ModelNotFoundError(
                f"model={model!r} is a directory without a config.json. Give the directory that "
                "holds the model's config, tokenizer and weights."
            )
        return ModelSource(model, "local", hash_directory(path, memo or Memo()), True)
    if path.is_file():
        raise ModelNotFoundError(
            f"model={model!r} is a file. Give the directory that holds the model, or a hub name."
        )
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"model={model!r} is neither a directory here (working directory: {Path.cwd()}) nor a "
            "hub name of the form 'organization/name'."
        ) from error
    commit, snapshot = _resolve_commit(model, revision or "main")
    return ModelSource(model, model, commit, False, snapshot)


def _resolve_commit(model: str, revision: str) -> tuple[str, str | None]:
    """The commit, and the snapshot's directory if the hub did not answer."""
    if _COMMIT.fullmatch(revision):
        return revision, None
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S)
            if info.sha:
                return info.sha, None
            reason = "the hub named no commit"
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ModelNotFoundError(
                f"model={model!r}, revision={revision!r}: the hub has no such model or revision, "
                "or it is gated or private and needs `hf auth login`."
            ) from error
        except Exception as error:
            # Not only OSError: which HTTP library's errors arrive here depends on the version of
            # huggingface_hub. The error is not lost: it becomes the reason in the message below.
            reason = f"the hub did not answer ({type(error).__name__}: {error})"
    snapshot = _snapshot_in_hub_cache(model, revision)
    if snapshot is None:
        raise ModelNotFoundError(
            f"model={model!r}, revision={revision!r} is no directory here and is not in the local "
            f"hub cache {constants.HF_HUB_CACHE}, and {reason}. Check the name, download it where "
            f"there is a network (`hf download {model}`), or name the commit of the cached "
            "embeddings with revision='<40 hex digits>'."
        )
    logger.info("%s is taken from the local hub cache, %s, because %s", model, snapshot, reason)
    return snapshot.name, str(snapshot)  # .../models--organization--name/snapshots/<commit>


def _snapshot_in_hub_cache(model: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "modules.json", "params.json"):
        path = try_to_load_from_cache(model, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def pin_tokenizer(arguments: dict[str, object], memo: Memo) -> dict[str, object]:
    """Replace a tokenizer's directory by the hash of its content.

    Args:
        arguments: Engine arguments that change vectors, by name.
        memo: Remembers the files' hashes.

    Returns:
        The arguments, with `local <hash over its files>` as `tokenizer`; the same arguments where
        the tokenizer is not given, or is no directory.
    """
    tokenizer = arguments.get("tokenizer")
    if not isinstance(tokenizer, str) or not Path(tokenizer).is_dir():
        return arguments
    return {**arguments, "tokenizer": f"local {hash_directory(Path(tokenizer), memo)}"}


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
    path = Path(given).expanduser()
    if not path.is_dir():
        path = _download(given)
    if not (path / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"lora_request={given!r} has no adapter_config.json. Give the directory that PEFT "
            "saved the adapter to."
        )
    return str(path), f"local {hash_directory(path, memo)}"


def _download(name: str) -> Path:
    """The snapshot of a hub repository; the local one where the hub is out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name))
    except (OSError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"lora_request={name!r} is no directory here (working directory: {Path.cwd()}), and "
            f"the hub has none of that name or is out of reach ({type(error).__name__}: {error})."
        ) from error
