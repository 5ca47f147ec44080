"""What a trial of `cluster_kills.py` has left in the cache: is it right, and does the rest go."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import lance
from _known import WrongVectorError, encode, open_encoder

from embcache import Cache
from embcache.cache import CachedSpace
from embcache.errors import EmbcacheError

if TYPE_CHECKING:
    from tests.object_store import ObjectStore

_TWO_HOURS = 7200


@dataclass
class Found:
    """What was found.

    Attributes:
        rows: Rows of the space, before it was compacted.
        before: Duplicates among them.
        after: Duplicates that a compaction has left.
        orphans: Data files that were written, and that no version names.
        faults: What is wrong.
    """

    rows: int = 0
    before: int = 0
    after: int = 0
    orphans: int = 0
    faults: list[str] = field(default_factory=list)


def look(model: Path, cache: str, texts: Sequence[str], store: ObjectStore | None = None) -> Found:
    """Check a cache, compare every vector, compact it, and look for files that nothing names.

    Args:
        model: Of the space.
        cache: Directory of the cache, or its URL.
        texts: All that must be in it, and nothing else.
        store: What holds the cache; None where it is on disk.
    """
    found = Found()
    try:
        [space] = Cache(cache).spaces()
        _check(space, len(texts), found)
        encode(open_encoder(model, cache, on_miss="raise"), texts)
        orphans = _orphans(space, store)
        found.orphans = len(orphans)
        space.compact()
        _check_compacted(space, len(texts), found)
        if store is None:
            _check_orphans(space, orphans, found)
        encode(open_encoder(model, cache, on_miss="raise"), texts)
    except (EmbcacheError, WrongVectorError, ValueError) as error:
        found.faults.append(f"{type(error).__name__}: {error}")
    return found


def _check(space: CachedSpace, texts: int, found: Found) -> None:
    report = space.check()
    found.rows, found.before = report.rows, report.duplicates
    if not report.ok or report.unverified:
        found.faults.append(str(report))
    if report.rows - report.duplicates != texts:
        found.faults.append(f"{texts} texts, and {report}")


def _check_compacted(space: CachedSpace, texts: int, found: Found) -> None:
    report = space.check()
    found.after = report.duplicates
    if not report.ok or report.duplicates or report.rows != texts:
        found.faults.append(f"after compaction: {report}")


def _orphans(space: CachedSpace, store: ObjectStore | None) -> set[str]:
    """Names of data files that no version of the table names."""
    location = space.location
    table = lance.dataset(location.uri, storage_options=location.lance_options)
    named = {
        Path(file.path).name
        for version in table.versions()
        for fragment in table.checkout_version(version["version"]).get_fragments()
        for file in fragment.metadata.files
    }
    return _data_files(space, store) - named


def _data_files(space: CachedSpace, store: ObjectStore | None) -> set[str]:
    if (folder := space.location.folder) is not None:
        return {path.name for path in (folder / "data").iterdir()}
    assert store is not None
    prefix = space.location.uri.split("/", 3)[3] + "/data/"
    batches = store.client().list(prefix)
    return {Path(one["path"]).name for batch in batches for one in batch}


def _check_orphans(space: CachedSpace, orphans: set[str], found: Found) -> None:
    """Let two hours go by, as far as the files can tell, and compact again: they must be gone."""
    folder = space.location.folder
    assert folder is not None
    then = time.time() - _TWO_HOURS
    for name in orphans:
        if (path := folder / "data" / name).exists():
            os.utime(path, (then, then))
    space.compact()
    if left := orphans & _data_files(space, None):
        found.faults.append(f"{len(left)} of {len(orphans)} files that nothing names stay")
