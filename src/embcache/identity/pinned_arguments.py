"""What an engine is started with beside the model, pinned: no name in it can move unseen.

Directories and files count by their content; names on the hub by the commits that they stand for
now, which is what the engine is then told to load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embcache.errors import EngineError, ModelNotFoundError
from embcache.identity.hub import (
    Commit,
    cached_snapshot,
    commit_of_snapshot,
    edited_files,
    is_commit,
    pin,
)
from embcache.identity.machine_memo import Memo
from embcache.identity.model_code import (
    MODEL_CONFIG,
    TOKENIZER_CONFIG,
    Code,
    code_of,
    named_code,
)
from embcache.identity.model_files import hash_path
from embcache.identity.named_files import existing_path, with_contents
from embcache.identity.weights import ModelSource, pin_adapter

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "config.json")


class PinnedArguments:
    """An engine's arguments, and what they have in an identity.

    Args:
        arguments: Arguments for the engine by name, `lora_request` among them; without model,
            revision and dtype.
        changing: Those that change vectors in canonical form, see `vector_arguments`.
        source: The model.
        memo: Remembers hashes of files.

    Attributes:
        engine: The arguments for the engine, without `lora_request`, with commits for branches.
        identity: The arguments for the identity, with hashes for files and commits for names.
        adapter: Directory of the LoRA adapter; None for none.

    Raises:
        ModelNotFoundError: A tokenizer, configuration, adapter or code is neither here, nor on
            the hub, nor in the local hub cache; or a file cannot be read.
        ConfigError: It cannot be found out whether an argument names a file.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        changing: Mapping[str, Any],
        source: ModelSource,
        memo: Memo,
    ) -> None:
        self.engine = dict(arguments)
        self.identity = dict(changing)
        self.adapter: str | None = None
        self._source = source
        self._memo = memo
        self._token = arguments.get("hf_token")
        self._contents: dict[Path, str] = {}
        self._moving: dict[tuple[str, str | None], str] = {}
        self._files: dict[str, list[str]] = {}
        if source.is_local and source.directory is not None:
            self._contents[source.directory] = source.revision
        self._pin_adapter()
        self._tokenizer_at = self._pin_tokenizer()
        self._config_at = self._pin_config()
        self._pin_drafts()
        self._code = self._named_code()
        self._pin_model_code(self._code[0])
        self._pin_tokenizer_code(self._code[1])
        self._pin_files()

    def check(self) -> None:
        """Make sure that a started engine has loaded what was pinned.

        Raises:
            EngineError: Files were changed, or names moved, since this object was made.
            ModelNotFoundError: A file is gone or cannot be read, or a name cannot be asked for.
        """
        changed = [
            str(path)
            for path, digest in self._contents.items()
            if not path.exists() or hash_path(path, self._memo) != digest
        ]
        if self._source.snapshot is not None and not self._source.is_local:
            changed += edited_files(Path(self._source.snapshot), self._memo)
        changed += [
            repo
            for (repo, revision), sha in self._moving.items()
            if self._pin(repo, revision, "code", *self._files[repo]).sha != sha
        ]
        if any(
            _repos(now) != _repos(then)
            for now, then in zip(self._named_code(), self._code, strict=True)
        ):
            changed.append("the code that the model's configuration names")
        if changed:
            raise EngineError(
                f"Changed between the making of this encoder and the start of its engine: "
                f"{', '.join(changed)}. What the engine loaded may be either, so nothing of it is "
                "used. Make the encoder again."
            )

    def _digest(self, path: Path) -> str:
        if path not in self._contents:
            self._contents[path] = hash_path(path, self._memo)
        return self._contents[path]

    def _pin(
        self, repo: str, revision: str | None, argument: str, *files: str, by: str = "revision"
    ) -> Commit:
        options = {"files": files} if files else {}
        return pin(
            repo,
            revision,
            argument=argument,
            revision_argument=by,
            token=self._token,
            **options,
        )

    def _snapshot(self, path: Path) -> Commit | None:
        """The hub's commit that a directory is a snapshot of, as the hub gave it."""
        commit = commit_of_snapshot(path)
        if commit is None or edited_files(path, self._memo):
            return None
        return commit

    def _pin_files(self) -> None:
        pinned = with_contents(self.identity, self._digest)
        for name, value in pinned.items():
            given = self.engine.get(name)
            if value != self.identity[name] and isinstance(given, (str, os.PathLike)):
                # The engine may start in another working directory.
                self.engine[name] = str(existing_path(os.fspath(given), name))
        self.identity = pinned

    def _pin_adapter(self) -> None:
        if (request := self.engine.pop("lora_request", None)) is None:
            return
        self.adapter, self.identity["lora_request"] = pin_adapter(request, self._memo)
        self._contents[Path(self.adapter)] = self.identity["lora_request"].removeprefix("local ")

    def _pin_tokenizer(self) -> Path | Commit | None:
        """Pin the tokenizer; returns where it is loaded from, None for the model's own."""
        given, revision = (self.engine.get(f"tokenizer{end}") for end in ("", "_revision"))
        home = self._home()
        if given is not None and (path := existing_path(os.fspath(given), "tokenizer")):
            return self._pin_tokenizer_path(path)
        repo = home.repo if home is not None and given is None else given
        if repo is None:
            return None  # not given; and a revision has no meaning for a directory
        if revision is None and home is not None and repo == home.repo:
            self.engine.pop("tokenizer", None)  # vLLM takes the model's, of the model's commit
            return None
        commit = self._pin(repo, revision, "tokenizer", *_TOKENIZER_FILES, by="tokenizer_revision")
        here = cached_snapshot(repo, commit.sha, _TOKENIZER_FILES)
        if here is not None and edited_files(here, self._memo, weights=False):
            return self._pin_tokenizer_path(here)
        self.identity["tokenizer_revision"] = commit.sha
        self.engine["tokenizer"] = commit.snapshot or commit.repo
        self.engine["tokenizer_revision"] = None if commit.snapshot else commit.sha
        return commit

    def _pin_tokenizer_path(self, path: Path) -> Path | Commit:
        self.engine["tokenizer"] = str(path)
        self.engine["tokenizer_revision"] = None
        if (commit := self._snapshot(path)) is None:
            self.identity["tokenizer"] = f"local {self._digest(path)}"
            return path
        self.identity |= {"tokenizer": commit.repo, "tokenizer_revision": commit.sha}
        return commit

    def _pin_config(self) -> Path | None:
        """Pin `hf_config_path`; returns where it is, None for the model's own.

        vLLM has no revision for it (it takes the model's), so it is given a directory.
        """
        if (given := self.engine.get("hf_config_path")) is None:
            return None
        path = existing_path(os.fspath(given), "hf_config_path")
        home = self._home()
        if path is None and home is not None and given == home.repo:
            del self.engine["hf_config_path"]  # the model's own, of the model's commit
            return None
        if path is None:
            repo, _, sha = str(given).partition("@")  # as the identity has it
            path = _download_configuration(
                self._pin(repo, sha or None, "hf_config_path"), self._token
            )
        self.engine["hf_config_path"] = str(path)
        commit = self._snapshot(path)
        self.identity["hf_config_path"] = (
            f"local {self._digest(path)}" if commit is None else f"{commit.repo}@{commit.sha}"
        )
        return path

    def _pin_drafts(self) -> None:
        """Pin further models by name: a draft model, and adapters of other modalities."""
        draft = self.engine.get("speculative_config")
        model = draft.get("model") if isinstance(draft, Mapping) else None
        if draft and isinstance(model, str) and "/" in model and not existing_path(model, "model"):
            sha = self._pin(model, draft.get("revision"), "speculative_config['model']").sha
            for both in (self.engine, self.identity):
                both["speculative_config"] = {**both["speculative_config"], "revision": sha}
        for argument in ("spec_model", "default_mm_loras"):  # these cannot be given a commit
            value = self.identity.get(argument)
            if isinstance(value, str):
                self.identity[argument] = self._watched(value, argument)
            elif isinstance(value, Mapping):
                self.identity[argument] = {
                    key: self._watched(one, argument) for key, one in value.items()
                }

    def _watched(self, name: str, argument: str) -> str:
        """A name with its commit, which `check` looks up again, as the engine cannot be told."""
        if existing_path(name, argument) is not None:
            return name
        self._files[name] = ["adapter_config.json", MODEL_CONFIG]
        sha = self._pin(name, None, argument, *self._files[name]).sha
        self._watch({name: sha}, None)
        return f"{name}@{sha}"

    def _home(self) -> Commit | None:
        """Where the model lies on the hub; None for a directory."""
        if self._source.is_local:
            return None
        return Commit(self._source.identity_name, self._source.revision, self._source.snapshot)

    def _named_code(self) -> tuple[Code | None, Code | None]:
        """The code that the model's configuration names, and the tokenizer's; None if unknown."""
        if not self.engine.get("trust_remote_code"):
            return Code({}, own=False), Code({}, own=False)
        model = self._source.directory or self._home()
        of_model = code_of(self._config_at or model, MODEL_CONFIG, self._token)
        overrides = named_code(self.identity.get("hf_overrides"))
        if of_model is None:  # the hub is out of reach: not asked again
            return (Code(overrides.repos, own=True) if overrides.repos else None), None
        of_model = Code({**of_model.repos, **overrides.repos}, of_model.own or overrides.own)
        return of_model, code_of(self._tokenizer_at or model, TOKENIZER_CONFIG, self._token)

    def _pin_model_code(self, code: Code | None) -> None:
        """Pin the model's code in other repositories, and a `code_revision` that can move.

        vLLM hands one `code_revision` to all of the model's code. Where it cannot serve for all,
        the commits are looked up again when the engine has started.
        """
        given = self.engine.get("code_revision")
        if is_commit(given):
            return
        home = self._home()
        repos = dict(_repos(code))
        named = home is not None and repos.pop(home.repo, None) is not None
        own = named or code is None or code.own
        commits = {repo: self._pin_code_of(repo, given, files) for repo, files in repos.items()}
        if not commits and home is not None and own:
            if given is not None:
                commits = {home.repo: self._pin_code_of(home.repo, given, [MODEL_CONFIG])}
            elif named and home.snapshot is not None:
                # To transformers, a snapshot's own repository is another one than its directory.
                self.engine["code_revision"] = home.sha
        if not commits:
            return
        alone = not own or home is None or (home.snapshot is not None and not named)
        named_here = home is not None and home.repo in commits
        first = next(iter(commits.values()))
        if len(commits) == 1 and is_commit(first) and (alone or named_here):
            self.identity["code_revision"] = self.engine["code_revision"] = first
            return
        self.identity["code_revision"] = commits
        self._watch(commits, given)
        if named and home is not None and home.snapshot is not None:
            self._watch({home.repo: home.sha}, given)

    def _pin_tokenizer_code(self, code: Code | None) -> None:
        """Pin a tokenizer's code in other repositories, of which vLLM can be told no commit."""
        home = self._tokenizer_at or self._home()
        commits = {}
        for repo, files in _repos(code).items():
            if not isinstance(home, Commit) or repo != home.repo:
                commits[repo] = self._pin_code_of(repo, None, files)
            elif home.snapshot is not None:
                self._watch({repo: home.sha}, None)
        if commits:
            self.identity["tokenizer_code"] = commits
            self._watch(commits, None)

    def _watch(self, commits: Mapping[str, str], revision: str | None) -> None:
        """Have `check` look names up again, of which the engine cannot be told the commit."""
        for repo, sha in commits.items():
            self._files.setdefault(repo, [MODEL_CONFIG, TOKENIZER_CONFIG])
            if is_commit(sha):
                self._moving[repo, revision] = sha

    def _pin_code_of(self, repo: str, revision: str | None, files: list[str]) -> str:
        if (path := existing_path(repo, "auto_map")) is not None:
            return f"local {self._digest(path)}"
        self._files[repo] = files
        return self._pin(repo, revision, "code", *files, by="code_revision").sha


def _repos(code: Code | None) -> Mapping[str, list[str]]:
    return {} if code is None else code.repos


def _download_configuration(commit: Commit, token: str | bool | None) -> Path:
    """The snapshot in the local hub cache, with the commit's configuration and code."""
    if commit.snapshot is not None:
        return Path(commit.snapshot)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                commit.repo, revision=commit.sha, allow_patterns=["*.json", "*.py"], token=token
            )
        )
    except Exception as error:  # which HTTP library's errors these are depends on the version
        raise ModelNotFoundError(
            f"hf_config_path={commit.repo!r} cannot be downloaded ({type(error).__name__}: "
            f"{error}). Download it where there is a network: `hf download {commit.repo}`."
        ) from error
