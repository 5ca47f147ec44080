"""What names say, without Lance: of tables, of the manifests of versions, and of data files.

Lance names the manifest of version v by 2**64 - 1 - v, in 20 digits, so that the latest comes first
in a listing; tables that it made before 2025 have plain numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from embcache.identity.strict_json import MOST_BYTES, StrictJsonError, read_object
from embcache.store.hosts import now

if TYPE_CHECKING:
    from lance.fragment import DataFile

FOLDER = "_versions"

COMMIT_FOLDERS = ("data", "_transactions", FOLDER)
"""Where a commit puts files."""

DELETIONS = "_deletions"

_SPACE_NAME = re.compile(r"--\w+--([0-9a-f]{10})$")
_HINT = "latest_version_hint.json"
_COMMIT_SECONDS = 30
_LAST = 2**64 - 1
_DIGITS = 20


def fingerprint_in(name: str) -> str | None:
    """The fingerprint at the end of a space's name; None in the name of another table."""
    found = _SPACE_NAME.search(name)
    return found[1] if found else None


def manifest(table: Path, version: int) -> Path:
    """The file that says what belongs to a version."""
    return table / FOLDER / f"{_LAST - version:0{_DIGITS}}.manifest"


def hint(table: Path) -> Path:
    """The file in which Lance notes the newest version; it may not be there."""
    return table / FOLDER / _HINT


def version_of(name: str) -> int | None:
    """The version that a manifest is of, by its file's name; None where it is no manifest's."""
    stem, _, ending = name.partition(".")
    if ending != "manifest" or not (stem.isascii() and stem.isdecimal()):
        return None
    number = _LAST - int(stem) if len(stem) == _DIGITS else int(stem)
    return number if number > 0 else None


def manifests(table: Path) -> list[tuple[Path, int | None]]:
    """Manifests and their versions, newest first; before all, None where the name fits no version.

    What is not called as a manifest at all, Lance passes over, and so does this.

    Args:
        table: The table's folder, which need not be there.
    """
    stems = {path: path.stem for path in _named_by_numbers(table)}
    numbers: dict[Path, int | None]
    if any(len(stem) == _DIGITS for stem in stems.values()):
        numbers = {
            path: _LAST - int(stem) if len(stem) == _DIGITS and int(stem) <= _LAST else None
            for path, stem in stems.items()
        }
    else:
        numbers = {path: int(stem) for path, stem in stems.items()}
    return sorted(numbers.items(), key=_by_version)


def versions(table: Path) -> dict[int, Path]:
    """The versions that a table has, newest first, with their manifests."""
    return {number: path for path, number in manifests(table) if number is not None}


def has_manifest(table: Path) -> bool:
    """Whether there is a manifest, of whatever version."""
    return any(True for _ in _named_by_numbers(table))


def newest_committed(table: Path) -> int:
    """The newest version that was committed, or was to be, as files beside the manifests say.

    Lance notes it in a hint, and names each transaction by the version that it is based on; one of
    the last half minute, in which Lance tries a commit, may still be on its way.

    Returns:
        0 where nothing says so.
    """
    found = [0]
    with suppress(OSError, StrictJsonError), hint(table).open("rb") as file:
        version = read_object(file.read(MOST_BYTES + 1)).get("version")
        found.append(version if isinstance(version, int) else 0)  # it may be damaged
    limit = (now(table) - _COMMIT_SECONDS) * 1e9
    for path in (table / "_transactions").glob("*.txn"):
        based_on = path.name.partition("-")[0]
        if based_on.isascii() and based_on.isdecimal() and _written(path) < limit:
            found.append(int(based_on) + 1)
    return max(found)


def data_paths(table: Path) -> list[Path]:
    """Every data file of a table, oldest first, whether a version names it or not."""
    return sorted((table / "data").glob("*.lance"), key=lambda path: (_written(path), path.name))


def data_path(table: Path, file: DataFile) -> Path:
    """Where a data file lies that a manifest names: in the table, whatever the manifest says.

    Lance itself takes `../x.lance` for the name of a file, and looks for it among the data files.
    """
    return table / "data" / file.path.rpartition("/")[2]


def _named_by_numbers(table: Path) -> Iterator[Path]:
    for path in (table / FOLDER).glob("*.manifest"):
        if path.stem.isascii() and path.stem.isdecimal():
            yield path


def _by_version(found: tuple[Path, int | None]) -> float:
    number = found[1]
    return float("-inf") if number is None else -number


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a compaction of another process removed it just now
        return 0
