"""A small memory of this machine: what was expensive to find out and stays true.

It holds hashes of model files (by path, size, modification time and inode) and what dtype "auto"
became (by model, vllm version and device). It lies outside the cache, because inodes and devices
mean nothing on another machine, and a cache may be copied or read-only. Losing it costs time only.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

logger = logging.getLogger(__name__)


def default_path() -> Path:
    """Where the memo lies, unless said otherwise.

    Returns:
        `memo.sqlite` in `$EMBCACHE_HOME`; without that variable, in `embcache` under
        `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        RuntimeError: That needs the user's home, which is not known.
    """
    home = os.environ.get("EMBCACHE_HOME")
    if home:
        return Path(home).expanduser() / "memo.sqlite"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "embcache" / "memo.sqlite"


class Memo:
    """Maps strings to strings, in a file that several processes may use at once.

    If the file cannot be used, this is logged once and nothing is remembered: what is asked for is
    then found out again each time.

    Args:
        path: The SQLite file, made if need be; None for `default_path()`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._working = True
        try:
            self._path = path or default_path()
        except RuntimeError as error:
            self._give_up("a folder for memo.sqlite", error)

    def get(self, key: str) -> str | None:
        """Look a key up.

        Args:
            key: What the value was remembered under.

        Returns:
            The value; None if there is none, or the file cannot be used.
        """
        rows = self._run("SELECT value FROM memo WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def put(self, key: str, value: str) -> None:
        """Remember a value, instead of an older one.

        Args:
            key: What the value is remembered under.
            value: The value.
        """
        self._run("INSERT OR REPLACE INTO memo VALUES (?, ?)", (key, value))

    def _run(self, statement: str, values: tuple[str, ...]) -> list[tuple[str]]:
        if not self._working:
            return []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS memo (key TEXT PRIMARY KEY, value TEXT)"
                )
                return connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._give_up(self._path, error)
            return []

    def _give_up(self, what: object, error: Exception) -> None:
        self._working = False
        logger.warning(
            "Cannot use %s (%s): model files are hashed again at every start. "
            "Set EMBCACHE_HOME to a folder that can be written.",
            what,
            error,
        )
