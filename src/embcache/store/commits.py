"""What is committed to a table: each commit in its turn, and again where others were first.

Every commit is safe beside those of other processes by Lance's own conflict detection, on disk and
in a store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from embcache.errors import CacheWriteError
from embcache.store.lance_errors import WRITE_FIX, despite_conflicts, lance_errors
from embcache.store.leftovers import remove_leftovers
from embcache.store.location import Location
from embcache.store.locks import in_turn

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # each of which Lance itself tries for half a minute


def create(location: Location, schema: pa.Schema) -> None:
    """Make a table without rows, unless another process does: what that one wrote stays.

    By a commit that is tried once: its manifest is the first, or is refused. Measured with Lance
    14, on disk and in a store: of all that creates a table, only this has one winner.
    `create_table(exist_ok=True)` and `write_dataset(mode="create")` try again, and then commit as
    an overwrite, which takes the rows along that others have written by then. To make it elsewhere
    and move it was rejected: a store has no renames.

    Args:
        location: Where it is made.
        schema: Its columns and metadata.

    Raises:
        OSError: Lance cannot make it, and there is none; or another Exception of Lance's.
    """
    if (cache := location.parent.folder) is not None:
        remove_leftovers(cache)
    try:
        lance.LanceDataset.commit(
            location.uri,
            lance.LanceOperation.Overwrite(schema, []),
            storage_options=location.lance_options,
            enable_stable_row_ids=True,
            max_retries=0,
        )
    except (OSError, RuntimeError, ValueError) as error:
        if not location.has_table():
            raise
        said = location.without_secrets(str(error))
        logger.debug("%s was created by another writer: %s", location, said)


def append(location: Location, table: lance.LanceDataset, rows: pa.Table) -> lance.LanceDataset:
    """Commit rows.

    Args:
        location: Where the table is.
        table: A version of it; rows of newer ones stay.
        rows: In its columns.

    Returns:
        The version with them.
    """
    written: list[lance.LanceDataset] = []

    def once() -> None:
        written.append(lance.write_dataset(rows, table, mode="append"))

    _patiently(location, once)
    return written[-1]


def stage(table: lance.LanceDataset, rows: pa.Table) -> str:
    """Write rows to a file of a table and commit nothing: nobody sees them until `add_staged`.

    Args:
        table: A version of the table.
        rows: In its columns; at most a million.

    Returns:
        What `add_staged` needs to know, as JSON.
    """
    [fragment] = write_fragments(rows, table, mode="append")
    return json.dumps(fragment.to_json())


def add_staged(location: Location, staged: Sequence[str]) -> lance.LanceDataset:
    """Commit files that `stage` has written, here or on another machine, all at once.

    Args:
        location: Where the table is.
        staged: What `stage` returned; the files are there, see `compaction.clean_up` for how long.

    Returns:
        The version with them.
    """
    waiting = [FragmentMetadata.from_json(one) for one in staged]
    committed: list[lance.LanceDataset] = []

    def once() -> None:
        table = lance.dataset(location.uri, storage_options=location.lance_options)
        # A commit whose answer was lost went through: the same files again would be rows twice.
        there = {file.path for one in table.get_fragments() for file in one.metadata.files}
        new = [one for one in waiting if not there.issuperset(file.path for file in one.files)]
        if new:
            _check_staged(location, new)
            table = lance.LanceDataset.commit(
                location.uri,
                lance.LanceOperation.Append(new),
                read_version=table.version,
                storage_options=location.lance_options,
            )
        committed.append(table)

    _patiently(location, once)
    return committed[-1]


def _check_staged(location: Location, staged: Sequence[FragmentMetadata]) -> None:
    """Refuse to commit files that are gone: Lance does not look, and the table would be damaged."""
    if location.folder is None:
        return
    for one in staged:
        for file in one.files:
            if not (location.folder / "data" / file.path).exists():
                raise CacheWriteError(
                    f"A file of rows, {file.path}, was to be committed to {location} and is gone: "
                    "a compaction took it for one that nobody wants. Compact with older_than=0 "
                    "only while nothing is written. The same command encodes again what it held."
                )


def delete(
    location: Location, table: lance.LanceDataset, column: str, literals: Sequence[str]
) -> None:
    """Commit that rows are deleted.

    Args:
        location: Where the table is.
        table: A version of it.
        column: Whose values say which rows.
        literals: These values, as Lance's SQL has them.
    """
    _patiently(location, partial(table.delete, f"{column} IN ({', '.join(literals)})"))


def drop_fragments(location: Location, version: int, fragments: Sequence[int]) -> None:
    """Commit that some fragments are deleted: of each all rows, none of which is read.

    Args:
        location: Where the table is.
        version: The version that they are of.
        fragments: Their ids.

    Raises:
        CacheError: Another process changed them since, or the table cannot be written.
    """
    deletion = lance.LanceOperation.Delete(
        updated_fragments=[],
        deleted_fragment_ids=list(fragments),
        predicate=f"fragment IN ({', '.join(map(str, fragments))})",  # for people to read
    )
    doing = lance_errors("Deleting damaged files from", location, WRITE_FIX)
    with doing, in_turn(location.folder):
        lance.LanceDataset.commit(
            location.uri,
            deletion,
            read_version=version,
            storage_options=location.lance_options,
        )


def _patiently(location: Location, commit: Callable[[], object]) -> None:
    """Commit; again, where Lance gives up because others commit all the time."""

    def in_its_turn() -> None:
        with in_turn(location.folder):
            try:
                commit()
            except Exception as error:
                if not location.is_outage(error):
                    raise
                location.versions()  # Lance has more patience with a list than with a write
                commit()

    despite_conflicts(in_its_turn, _ATTEMPTS)
