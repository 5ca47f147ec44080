"""Merge two caches: what one of them computed, the other need not."""

from __future__ import annotations

from collections.abc import Mapping

from embcache.tools.find import CachePath
from embcache.tools.transfer import TransferReport, transfer


def merge_caches(
    source: CachePath,
    target: CachePath,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> TransferReport:
    """Add to a cache what another one has and it has not: `transfer` of everything.

    Args:
        source: The cache to read from; it is not changed. One with damaged files will do: what can
            be read of them is merged.
        target: The cache to add to; made if need be.
        storage_options: What the stores of URLs need to be opened, of both; a Location has its own.

    Returns:
        Counts a space.

    Raises:
        ConfigError: Both are the same place, or the source holds a table of `LanceCache`, whose
            keys say nothing of the model.
        CacheError: There is no source; the target cannot be written; or one identity has vectors
            of different dimensions, or scores, in the two. Then nothing was merged.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """
    return transfer(source, target, storage_options=storage_options)
