"""A Hugging Face hub without a network: branches that move, and a cache as the hub lays it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40


class Hub:
    """The hub, and its cache on this machine; offline at first, as in every test.

    Attributes:
        cache: The cache's directory.
        branches: Commits by repository and branch, as the hub would answer.
        asked: What was asked of the hub.
    """

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        self.branches: dict[tuple[str, str], str] = {}
        self.asked: list[tuple[str, str]] = []
        self._monkeypatch = monkeypatch
        self.use()

    def use(self) -> None:
        """Have huggingface_hub use this cache."""
        self._monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache))

    def go_online(self) -> None:
        """Answer from `branches`, and have no further files."""

        def model_info(_: Any, repo: str, *, revision: str, **others: Any) -> Any:
            self.asked.append((repo, revision))
            return SimpleNamespace(sha=self.branches[repo, revision])

        self._monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        self._monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        self._monkeypatch.setattr("huggingface_hub.HfApi.file_exists", lambda *_, **__: False)

    def add(
        self, repo: str, files: Mapping[str, str], commit: str = FIRST, branch: str = "main"
    ) -> Path:
        """Put a snapshot into the cache, links to blobs, and have a branch lead to it."""
        folder = self.cache / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            content = text.encode()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            large = name.endswith(".safetensors")
            blob = folder / "blobs" / (hashlib.sha256(content).hexdigest() if large else git)
            blob.write_bytes(content)
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
        self.branches[repo, branch] = commit
        return snapshot


MODEL = {
    "config.json": '{"model_type": "bert"}',
    "model.safetensors": "weights",
    "modules.json": '[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
    "1_Pooling/config.json": '{"pooling_mode": "mean"}',
    "README.md": "card",
}
