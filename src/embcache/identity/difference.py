"""In what two identities of a model differ, for people."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embcache.errors import shown
from embcache.identity.hub import commit_of_snapshot
from embcache.identity.identity import LOCAL, Identity
from embcache.identity.machine_memo import Memo
from embcache.identity.model_files import changed_files

_AT_MOST = 8
_NOT_SET = "not set"


def differences(old: Identity, new: Identity, memo: Memo) -> list[str]:
    """Say in what an identity differs from another one.

    Args:
        old: The one to compare with.
        new: The one that is looked at.
        memo: Knows files of directories, see `changed_files`.

    Returns:
        `name: old -> new` for each difference, a nested argument by its path
        (`hf_overrides.num_hidden_layers`); for directories of which it is known, the files.
    """
    before, after = dict(_flat(dataclasses.asdict(old))), dict(_flat(dataclasses.asdict(new)))
    found = []
    for name in [*before, *(name for name in after if name not in before)]:
        one, other = before.get(name, _NOT_SET), after.get(name, _NOT_SET)
        if one != other:
            files = _files(one, other, memo) if isinstance(one, str) else ""
            found.append(f"{name}: {_value(one)} -> {_value(other)}{files}")
    if old.model == new.model == LOCAL:
        found = [each.replace("revision:", "content of the directory:", 1) for each in found]
    return found


def in_words(found: list[str]) -> str:
    """Join differences to a part of a sentence.

    Args:
        found: What `differences` returned.
    """
    more = [f"and {len(found) - _AT_MOST} more"] if len(found) > _AT_MOST else []
    return "; ".join(found[:_AT_MOST] + more)


def same_model(one: str, other: str) -> bool:
    """Whether two names that users gave mean one model, whatever is in it by now.

    Args:
        one: A hub name or directory.
        other: A hub name or directory.
    """
    return _meant(one) == _meant(other)


def _meant(model: str) -> str:
    path = Path(os.path.expanduser(model))  # which raises nothing where there is no home
    commit = commit_of_snapshot(path)
    if commit is not None:
        return commit.repo
    return str(path.resolve()) if path.is_dir() or path.is_absolute() else model


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            # Nobody says `arguments.max_model_len`.
            inner = "" if not prefix and name == "arguments" else f"{prefix}{name}."
            yield from _flat(item, inner)
        else:
            yield f"{prefix}{name}", item


def _value(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 64 else shown(value)


def _files(old: str, new: Any, memo: Memo) -> str:
    hashes = [str(one).removeprefix(f"{LOCAL} ") for one in (old, new)]
    files = changed_files(hashes[0], hashes[1], memo)
    if not files:
        return ""
    more = f" and {len(files) - _AT_MOST} more" if len(files) > _AT_MOST else ""
    return f" (files: {', '.join(files[:_AT_MOST])}{more})"
