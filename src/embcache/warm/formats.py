"""The formats of files, and what a file's name says: which are read, passed over, or named."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

ARCHIVES = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files, of the formats that are made of lines."""


def _or_compressed(*endings: str) -> tuple[str, ...]:
    return tuple(ending + archive for ending in endings for archive in ("", *ARCHIVES))


FORMATS = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "jsonl": _or_compressed(".jsonl", ".ndjson", ".json"),
    "csv": _or_compressed(".csv"),
    "tsv": _or_compressed(".tsv", ".tab"),
    "txt": _or_compressed(".txt"),
    "lance": (".lance",),
}
"""File formats, and the endings, in any case, by which their files are found in a directory.

A Lance table is a folder; it stands here as one file.
"""

VERSIONS = "_versions"
"""The folder by which a folder is known as a Lance table: its manifests."""

_ALL_ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
# What the library datasets writes beside its rows.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NAMED = 5


def is_wanted(name: str, kind: str) -> bool | None:
    """Whether something in a folder is read, by its name.

    Args:
        name: Of a file, or of a Lance table.
        kind: A key of `FORMATS`.

    Returns:
        Whether it is read; None if it is not even worth naming.
    """
    name = name.lower()
    if name.startswith("."):
        return None
    if name.startswith("_"):
        return False if name.endswith(_ALL_ENDINGS) else None
    return name.endswith(FORMATS[kind]) and name not in _DESCRIPTIONS


def may_be_table(name: str) -> bool:
    """Whether a folder within a folder is called as Lance tables are.

    Args:
        name: Of the folder.
    """
    return name.lower().endswith(FORMATS["lance"])


def warn_of_others(folder: str, kind: str, read: int, others: Sequence[str]) -> None:
    """Name what a folder holds besides; nothing is said where there is nothing else.

    Args:
        folder: The folder.
        kind: What its files are read as.
        read: How many are.
        others: What is not read, as it is called in the folder.
    """
    if not others:
        return
    more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    logger.warning(
        "%s: %s of its files read as %s; not read: %s%s",
        folder,
        f"{read:,}",
        kind,
        ", ".join(others[:_NAMED]),
        more,
    )
