"""Copy rows from one cache into another: those that it lacks, and that one asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from embcache.errors import CacheError, ConfigError, UnreachableError
from embcache.pipeline.known_canaries import read_canaries
from embcache.store import Database, Location, Reader, RowFilter, Space
from embcache.store.index import Positions
from embcache.store.space import CANARIES
from embcache.tools.append import Appender, target_space
from embcache.tools.find import CachePath, find_spaces
from embcache.tools.missing_rows import fitting, read_keys, read_sound

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpaceTransfer:
    """What became of one space's rows.

    Attributes:
        name: The source's table.
        rows: Rows of the source.
        added: Rows that the target had not, and has now.
        present: Rows whose key the target had before.
        duplicates: Rows whose key an earlier row of the source has.
        unfit: Rows that the target has not, and that do not fit the filter.
        lost: Rows that are damaged, or cannot be read, or whose key is not that of their text.
            They are not in the target. Of rows that the target has, this is not known.
        size: Bytes of the rows that were copied.
        canaries: Canaries that were copied, see docs/canaries.md.
    """

    name: str
    rows: int
    added: int
    present: int
    duplicates: int
    unfit: int
    lost: int
    size: int
    canaries: int

    def __str__(self) -> str:
        parts = [f"{self.added:,} of {self.rows:,} rows added", f"{self.present:,} there already"]
        if self.unfit:
            parts.append(f"{self.unfit:,} not asked for")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates")
        if self.lost:
            parts.append(f"{self.lost:,} damaged or unreadable, left out")
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class TransferReport:
    """What `transfer` did.

    Attributes:
        spaces: One entry a space of the source, by name.
        failed: Spaces of the source that could not be opened at all, each with its error.
    """

    spaces: tuple[SpaceTransfer, ...]
    failed: tuple[str, ...] = ()

    @property
    def added(self) -> int:
        """Rows added, over all spaces."""
        return sum(space.added for space in self.spaces)

    @property
    def lost(self) -> int:
        """Rows left out because they are damaged or cannot be read, over all spaces."""
        return sum(space.lost for space in self.spaces)

    def __str__(self) -> str:
        lines = [str(space) for space in self.spaces]
        lines += [f"left out: {error}" for error in self.failed]
        return "\n".join(lines) or "The source has no spaces."


@dataclass(frozen=True)
class TransferProgress:
    """How far the transfer of a space is.

    Attributes:
        name: The source's table.
        rows: Rows that have been read.
        total: Rows that will be.
        size: Bytes of those that were sound.
    """

    name: str
    rows: int
    total: int
    size: int


Progress = Callable[[TransferProgress], None]


def transfer(
    source: CachePath,
    target: CachePath,
    spaces: str | Iterable[str] | None = None,
    *,
    prompt: str | None = None,
    contains: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """Add to a cache rows that another one has and it has not; nothing is encoded again.

    Of the source, first the keys are read, 16 bytes a row; then, for a filter, its columns of the
    rows that the target lacks; and then those rows alone. Each is checked, and copied with all its
    columns, `created_at` included. They are committed in chunks of about 10,000, each one
    transaction: after a kill, run it again, and it goes on. Where both caches have a key, the
    target's row stays, so running it twice changes nothing. Both may be in use meanwhile. A space
    that has no canaries in the target gets the source's.

    Args:
        source: The cache to read from; it is not changed. One with damaged files will do: what can
            be read of them is copied.
        target: The cache to add to; made if need be.
        spaces: Of the source, as for `find_spaces`; None for all.
        prompt: Only rows with this prompt.
        contains: Only rows with this in their text (in query or document, for scores).
        storage_options: What the stores of URLs need to be opened, of both; a Location has its own.
        progress: Called after each batch of rows.

    Returns:
        Counts a space. Memory: a chunk, and about 100 bytes a row of the largest source space.

    Raises:
        ConfigError: Both are the same place; a name fits no space of the source, or several; a
            space has no column that a filter needs; or it is a table of `LanceCache`, whose keys
            say nothing of the model. Then nothing was copied.
        CacheError: There is no source; or one identity has vectors of different dimensions, or
            scores, in the two, or canaries that differ. Then nothing was copied. Or the source
            cannot be read for what is no damage (its store does not answer, say), or the target
            not be written.
    """
    reading = Database(source, storage_options, writable=False)
    adding_to = Location.of(target, storage_options)
    if reading.location.same_as(adding_to):
        raise ConfigError(
            f"{reading.location} is both the source and the target. Give another cache."
        )
    if not reading.location.exists():
        raise CacheError(
            f"{reading.location} does not exist: there is nothing to copy from. Give the directory "
            "or URL of a cache."
        )
    chosen = RowFilter(prompt, contains)
    found, errors = _open(reading.location, [spaces] if isinstance(spaces, str) else spaces)
    for error in errors:
        logger.warning("A space is left out: %s", error)
    for _, reader in found:
        _check_filter(chosen, reader)
    writing = Database(adding_to, writable=True)
    targets = [target_space(writing, reader.schema, reader.location) for _, reader in found]
    for (space, _), into in zip(found, targets, strict=True):
        _check_canaries(space, into)
    copied = []
    for (space, reader), into in zip(found, targets, strict=True):
        copied.append(_Copy(space, reader, into, chosen, progress).run())
    return TransferReport(tuple(copied), tuple(map(str, errors)))


class _Copy:
    """Copies one space's rows.

    Args:
        source: The space.
        reader: The version of it that is copied.
        target: Where the rows go.
        chosen: Which are meant.
        progress: Called after each batch of rows.
    """

    def __init__(
        self,
        source: Space,
        reader: Reader,
        target: Space,
        chosen: RowFilter,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._reader = reader
        self._target = target
        self._chosen = chosen
        self._progress = progress
        self._read = self._copied = self._size = 0
        self._appender = Appender(partial(target.add_arrow, dim=reader.dim))

    def run(self) -> SpaceTransfer:
        """Copy what the target lacks, and commit it."""
        found = read_keys(self._reader)
        missing = np.flatnonzero(self._target.refresh().find(found.distinct) < 0)
        wanted, positions = found.turn(missing, 0)
        fit = fitting(self._reader, positions, self._chosen)
        wanted = wanted[fit.fits]
        total, turn = len(wanted), 0
        while len(wanted):
            # In place of a row that is not sound, a duplicate of it will do.
            owners, positions = found.turn(wanted, turn)
            wanted = owners[~self._copy(positions, total)]
            turn += 1
        self._appender.flush()
        lost = found.unreadable + fit.unknown + self._read - self._copied
        if lost:
            logger.warning(
                "%d rows of %s are damaged or cannot be read; they are left out, and encoded "
                "again when they are needed.",
                lost,
                self._reader.location.name,
            )
        added = self._appender.added
        return SpaceTransfer(
            self._reader.location.name,
            rows=found.rows,
            added=added,
            present=len(found.distinct) - len(missing) + self._copied - added,
            duplicates=found.duplicates,
            unfit=len(missing) - int(fit.fits.sum()) - fit.unknown,
            lost=lost,
            size=self._size,
            canaries=_copy_canaries(self._source, self._reader, self._target),
        )

    def _copy(self, positions: Positions, total: int) -> npt.NDArray[np.bool_]:
        """Copy rows of some positions; which of them were sound."""
        sound = np.zeros(len(positions), bool)
        before = self._read
        for at, batch in read_sound(self._reader, positions):
            sound[at] = True
            self._copied += len(at)
            self._size += batch.nbytes
            self._read = before + int(at[-1]) + 1 if len(at) else self._read
            self._appender.add(batch)
            if self._progress is not None:
                name = self._reader.location.name
                self._progress(TransferProgress(name, self._read, total, self._size))
        self._read = before + len(positions)
        return sound


def _open(
    source: Location, names: Iterable[str] | None
) -> tuple[list[tuple[Space, Reader]], list[CacheError]]:
    """The spaces that are meant, each with its newest version; and why others cannot be opened."""
    found: dict[str, tuple[Space, Reader]] = {}
    errors: list[CacheError] = []
    for space in find_spaces(names, source):
        if not space.location.parent.same_as(source):
            raise ConfigError(
                f"{space.location} is no space of {source}, which is to be copied from. Give part "
                "of the name of one that is."
            )
        try:
            found[str(space.location)] = space, space.open()
        except CacheError as error:
            if isinstance(error, UnreachableError) and source.folder is None:
                raise  # of no space in particular
            errors.append(error)
    return [found[place] for place in sorted(found)], errors


def _check_filter(chosen: RowFilter, reader: Reader) -> None:
    try:
        chosen.columns(reader.schema)
    except ConfigError as error:
        raise ConfigError(f"{reader.location}: {error} Or name other spaces only.") from error


def _check_canaries(source: Space, target: Space) -> None:
    """Refuse rows of another model: its vectors would be hits among those of this one."""
    if not all(one.location.table(CANARIES).has_table() for one in (source, target)):
        return
    try:
        different = read_canaries(target).difference(read_canaries(source), target.identity.dtype)
    except CacheError as error:
        logger.warning("The canaries of %s are not compared: %s", source.location, error)
        return
    if different:
        raise CacheError(
            f"The vectors of {source.location} are another model's than those of "
            f"{target.location}, under one identity: {different}. Find out which is wrong, and "
            "remove that space (`CachedSpace.remove`); or name the other spaces."
        )


def _copy_canaries(source: Space, reader: Reader, target: Space) -> int:
    """Copy canaries, where the target has rows and none; how many.

    They are a net beside the rows: what is wrong with them costs no row.
    """
    try:
        if not source.location.table(CANARIES).has_table() or not len(target.refresh()):
            return 0
        # Where no texts are stored, canaries have other keys.
        texts = reader.layout.texts[0] in reader.columns
        if target.stores_text != texts or len(target.canaries.refresh()):
            return 0
        found = source.canaries.open()
        appender = Appender(partial(target.canaries.add_arrow, dim=found.dim))
        for _, batch in read_sound(found, np.arange(len(found))):
            appender.add(batch)
        appender.flush()
        return appender.added
    except CacheError as error:
        logger.warning("The canaries of %s are not copied: %s", reader.location, error)
        return 0
