"""Names on the Hugging Face hub: the commits that they stand for, and what its cache here holds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in __all__

from embcache.errors import ModelNotFoundError
from embcache.identity.home import working_directory
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import model_files, remembered_digest

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL_FILES = ("config.json", "modules.json", "params.json")


@dataclass(frozen=True)
class Commit:
    """One state of a repository on the hub.

    Attributes:
        repo: The repository, `organization/name`.
        sha: The commit's 40 hex digits.
        snapshot: Directory in the local hub cache to load from because the hub did not answer;
            None where the hub can be asked.
    """

    repo: str
    sha: str
    snapshot: str | None = None


def is_commit(revision: object) -> bool:
    """Whether a revision is a full commit hash, which never moves.

    Args:
        revision: A revision as the user gave it.
    """
    return isinstance(revision, str) and bool(_COMMIT.fullmatch(revision))


def is_repo_id(name: str) -> bool:
    """Whether the hub could have a repository of that name.

    Args:
        name: `organization/name`, or `name`.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def pin(
    repo: str,
    revision: str | None,
    *,
    argument: str = "model",
    revision_argument: str = "revision",
    files: Sequence[str] = _MODEL_FILES,
    token: str | bool | None = None,
) -> Commit:
    """Find the commit that a name on the hub stands for now.

    A full commit hash is taken as it is, anything else is asked of the hub, or of the local hub
    cache where the hub is out of reach or `HF_HUB_OFFLINE` is set.

    Args:
        repo: Name of the repository.
        revision: Branch, tag or commit; None for `main`.
        argument: What the name was given as, for messages.
        revision_argument: What its commit can be given as, for messages.
        files: One of these is in the local hub cache if the repository is.
        token: The hub's token, for repositories that need one; None for the one that is saved.

    Returns:
        The commit.

    Raises:
        ModelNotFoundError: It is no name of a repository; or the hub has no such repository or
            revision; or it is out of reach, and the local hub cache has none.
    """
    if not is_repo_id(repo):
        raise ModelNotFoundError(
            f"{argument}={repo!r} is neither a directory here (working directory: "
            f"{working_directory()}) nor a hub name of the form 'organization/name'."
        )
    if is_commit(revision):
        return Commit(repo, str(revision))
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    revision = revision or "main"
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi(token=token).model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
            if info.sha:
                return Commit(repo, info.sha)
            reason = "the hub named no commit"
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ModelNotFoundError(
                f"{argument}={repo!r}, revision={revision!r}: the hub has no such model or "
                "revision, or it is gated or private and needs `hf auth login`."
            ) from error
        except Exception as error:
            # Not only OSError: which HTTP library's errors arrive here depends on the version of
            # huggingface_hub. The error is not lost: it becomes the reason in the message below.
            reason = f"the hub did not answer ({type(error).__name__}: {error})"
    snapshot = cached_snapshot(repo, revision, files)
    if snapshot is None:
        raise ModelNotFoundError(
            f"{argument}={repo!r}, revision={revision!r} is no directory here and is not in the "
            f"local hub cache {constants.HF_HUB_CACHE}, and {reason}. Check the name, download it "
            f"where there is a network (`hf download {repo}`), or name the commit of the cached "
            f"embeddings with {revision_argument}='<40 hex digits>'."
        )
    logger.info("%s is taken from the local hub cache, %s, because %s", repo, snapshot, reason)
    return Commit(repo, snapshot.name, str(snapshot))  # .../snapshots/<commit>


def cached_snapshot(repo: str, revision: str, files: Sequence[str] = _MODEL_FILES) -> Path | None:
    """The directory of a revision in the local hub cache.

    Args:
        repo: Name of the repository.
        revision: Branch, tag or commit.
        files: Paths in the repository, one of which is there if anything is.

    Returns:
        `.../models--organization--name/snapshots/<commit>`; None if it is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in files:
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return Path(path.removesuffix(name)).absolute()
    return None


def read_file(commit: Commit, name: str, token: str | bool | None = None) -> str | None:
    """A file of a repository, out of the local hub cache or from the hub.

    Args:
        commit: The state of the repository.
        name: Path of the file in it.
        token: The hub's token, if it needs one.

    Returns:
        Its text, `""` where the repository has no such file; None where that cannot be found out.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(commit.repo, name, revision=commit.sha)
    if path is None:
        try:
            # Asked first, because a download tries again for half a minute where nobody answers.
            if HfApi(token=token).file_exists(commit.repo, name, revision=commit.sha):
                path = hf_hub_download(commit.repo, name, revision=commit.sha, token=token)
        except Exception as error:
            # Gated, or no connection, as any HTTP library says it. The engine cannot load what
            # cannot be read, and when it could, it is looked at again.
            logger.debug("%s of %s cannot be read: %s", name, commit, error)
            return None
    # Not a path: the hub is known to have no such file.
    return Path(path).read_text(encoding="utf-8") if isinstance(path, str) else ""


def local_json(place: str | Path, name: str, revision: str | None) -> dict[str, Any]:
    """Read one of a model's JSON files, without the network.

    Args:
        place: The model's directory, or its hub name.
        name: Name of the file.
        revision: Commit of a hub name.

    Returns:
        What the file holds; empty where it is neither in the directory nor in the hub cache.
    """
    from huggingface_hub import try_to_load_from_cache

    path: object = Path(place) / name
    if not Path(place).is_dir():
        path = try_to_load_from_cache(str(place), name, revision=revision)
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return {}
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config


def commit_of_snapshot(path: Path) -> Commit | None:
    """What a directory is on the hub, if it is a snapshot in a hub cache.

    Args:
        path: Any directory, or a link to one.

    Returns:
        The commit, with the directory as its `snapshot`; None for other directories.
    """
    real = path.resolve()
    folder = real.parent.parent.name  # models--organization--name/snapshots/<commit>
    repo = folder.removeprefix("models--").replace("--", "/")
    if not (is_commit(real.name) and real.parent.name == "snapshots"):
        return None
    if not folder.startswith("models--") or not is_repo_id(repo):
        return None
    return Commit(repo, real.name, str(real))


def edited_files(snapshot: Path, memo: Memo, *, weights: bool = True) -> list[str]:
    """Files of a snapshot that are not as the hub gave them.

    The hub's files are links to blobs, which are named by a digest of their content. An editor
    replaces the link by a file, or writes through it into the blob; both are seen. A cache without
    blobs lies on a file system without links: its files cannot be told from the hub's, and they
    are what the hub's name loads, too.

    Args:
        snapshot: The snapshot's directory.
        memo: Remembers digests.
        weights: Whether to read large files, too, whose digest is SHA-256.

    Returns:
        Paths in the snapshot, of files that can change vectors.

    Raises:
        ModelNotFoundError: A file cannot be read.
    """
    blobs = snapshot.resolve().parent.parent / "blobs"
    if not blobs.is_dir() or not any(blobs.iterdir()):
        return []
    return [
        str(name)
        for name, file in model_files(snapshot, exports=False).items()
        if not _is_blob(file, blobs, memo, weights)
    ]


def _is_blob(file: Path, blobs: Path, memo: Memo, weights: bool) -> bool:
    if not file.is_symlink():
        return False
    blob = Path(os.path.abspath(file.parent.resolve() / os.readlink(file)))
    if blob.parent.resolve() != blobs.resolve():
        return False
    digests = {40: ["git", "sha1"], 64: ["sha256"] if weights else []}.get(len(blob.name), [])
    if not digests or not re.fullmatch("[0-9a-f]+", blob.name):
        return True  # not by digest: a mirror's own tag
    return any(_digest(blob, kind, memo) == blob.name for kind in digests)


def _digest(blob: Path, kind: str, memo: Memo) -> str:
    head = b"blob %d\0" % blob.stat().st_size if kind == "git" else b""
    hasher = hashlib.sha256() if kind == "sha256" else hashlib.sha1(head, usedforsecurity=False)
    return remembered_digest(blob, kind, hasher, memo)
