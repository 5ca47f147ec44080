"""What of a model's folder no loading code reads, so that it changes no vector.

A short list of what training, export and publishing leave beside a model. Whatever is not on it
counts, and so does what is on it as soon as the model's own files name it: a `modules.json` may
well have a module in `onnx`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_FROM_FORMAT_1 = ".md"  # model cards; hidden files and __pycache__ are not even walked into

# What transformers' Trainer writes to go on training. vLLM passes over these weights by name
# (filter_files_not_needed_for_inference), and to a model's own code they are of no use either.
_TRAINING_FILES = re.compile(
    r"trainer_state\.json|training_args\.bin|(optimizer|scheduler)\.(pt|bin)|scaler\.pt"
    r"|rng_state.*\.pth|(all|train|eval|test|predict)_results\.json|events\.out\.tfevents\..*"
)
_TRAINING_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d+")

# Only where the model has no code of its own, which may read anything.
_OTHER_FILES = re.compile(
    r"(license|licence|notice|copying|readme)([-_][\w-]+)?(\.(txt|rst|html|pdf))?"
    r"|.*\.(png|jpe?g|gif|svg|webp|pdf|csv|log|ipynb)",
    re.IGNORECASE,
)
_OTHER_FOLDERS = frozenset(
    {"eval", "runs", "logs", "wandb", "mlruns", "tensorboard", "lightning_logs"}
)
# The same model for other runtimes, which vLLM and PyTorch do not look at.
_EXPORT_FOLDERS = frozenset({"onnx", "openvino"})

# Any word may be a token: a vocabulary names no files.
_VOCABULARIES = frozenset(
    {"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"}
)
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"' + r"|'((?:[^'\\\n]|\\.)*)'")
_NAMING_LIMIT = 16 * 2**20


def unread_files(
    files: Mapping[PurePosixPath, Path], *, exports: bool = True
) -> set[PurePosixPath]:
    """Find the files that change no vector of a model.

    Args:
        files: Where the folder's files lie, by their path in the folder.
        exports: Whether `onnx` and `openvino` count: to vLLM they do not, to Sentence Transformers
            with such a backend they are the model.

    Returns:
        Paths in the folder, a subset of the keys of `files`.

    Raises:
        OSError: A configuration file cannot be read.
    """
    in_folder = {name for name in files if _in_unread_folder(name, False, exports)}
    by_name = {name for name in files if _has_unread_name(name, False)}
    if not in_folder | by_name:
        return set()
    texts = {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in files.items()
        if name not in in_folder | by_name and _may_name_files(name, path)
    }
    own_code = any(_runs_own_code(name, text) for name, text in texts.items())
    named = [
        PurePosixPath("".join(quoted))
        for text in texts.values()
        for quoted in _QUOTED.findall(text)
    ]
    folders = {path.parts[0] for path in named if path.parts}
    names = {path.name for path in named}
    return {
        name
        for name in in_folder
        if _in_unread_folder(name, own_code, exports) and name.parts[0] not in folders
    } | {name for name in by_name if _has_unread_name(name, own_code) and name.name not in names}


def _in_unread_folder(name: PurePosixPath, own_code: bool, exports: bool) -> bool:
    if len(name.parts) == 1 or name.suffix == ".py":  # code may be imported from anywhere
        return False
    folder = name.parts[0]
    if _TRAINING_FOLDERS.fullmatch(folder):
        return True
    return not own_code and (
        folder in _OTHER_FOLDERS or (folder in _EXPORT_FOLDERS and not exports)
    )


def _has_unread_name(name: PurePosixPath, own_code: bool) -> bool:
    if name.suffix.lower() == _FROM_FORMAT_1 or _TRAINING_FILES.fullmatch(name.name):
        return True
    return not own_code and bool(_OTHER_FILES.fullmatch(name.name))


def _may_name_files(name: PurePosixPath, path: Path) -> bool:
    return (
        name.suffix in (".json", ".py")
        and name.name not in _VOCABULARIES
        and path.stat().st_size <= _NAMING_LIMIT
    )


def _runs_own_code(name: PurePosixPath, text: str) -> bool:
    """Whether a configuration file has code run that is not of a library's."""
    if name.suffix != ".json":
        return False
    if name.name != "modules.json":
        return '"auto_map"' in text
    try:
        modules = json.loads(text)
        return any(not one["type"].startswith("sentence_transformers.") for one in modules)
    except (ValueError, TypeError, KeyError, AttributeError):
        return True  # not as Sentence Transformers writes it: who knows what reads it
