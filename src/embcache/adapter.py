"""LoRA adapters: which directory one is in, and what its weights are identified by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embcache.errors import ModelNotFoundError
from embcache.memo import Memo
from embcache.source import hash_directory


def pin_adapter(lora_request: Any, memo: Memo) -> tuple[str, str]:
    """Find an adapter and hash it.

    Args:
        lora_request: Its directory, a hub name, or vLLM's LoRARequest, whose path counts; name
            and number of that change no vector.
        memo: Remembers the files' hashes.

    Returns:
        The directory to load from, and `local <hash over its files>` for the identity.

    Raises:
        ModelNotFoundError: There is no adapter in the directory, and none of that name on the hub
            or in the local hub cache.
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
