"""`check` in a process of its own, which damaged bytes may end; see `embcache.store.watch`.

Lines of JSON on its standard output: what it reads next, log records, reports, an error. Run as a
module it is that process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from embcache import errors
from embcache.cli.output import plain
from embcache.errors import CacheError, EmbcacheError
from embcache.store import Location, watch
from embcache.tools.check import check_space
from embcache.tools.find import CachePath, find_spaces

logger = logging.getLogger(__name__)

_MOST_DEATHS = 20
_TAIL = 2000
_STOPPED = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)


@dataclass(frozen=True)
class Checked:
    """What `check_space` said of one space.

    Attributes:
        ok: Whether nothing is wrong, or nothing any more.
        text: The report, for people.
        fields: The report, for programs.
    """

    ok: bool
    text: str
    fields: dict[str, Any]


@dataclass
class _Job:
    """What the process is to do.

    Attributes:
        spaces: As `find_spaces` takes them.
        cache: The same.
        fix: As `check_space` takes it.
        storage_options: What the stores of URLs need to be opened.
        done: Spaces that an earlier process has reported.
        deadly: What earlier processes died of.
    """

    spaces: list[str]
    cache: str
    fix: bool
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)
    done: list[str] = field(default_factory=list)
    deadly: list[str] = field(default_factory=list)


def check_apart(spaces: Sequence[str] | None, cache: CachePath, *, fix: bool) -> Iterator[Checked]:
    """Check spaces, and go on where damaged bytes end the process that reads them.

    Args:
        spaces: Which, as `find_spaces` takes them.
        cache: The same.
        fix: As `check_space` takes it.

    Raises:
        EmbcacheError: What `find_spaces` and `check_space` raise.
        CacheError: The process died too often, or of something else.
    """
    where = Location.of(cache)
    # By its standard input: command lines are for everybody to see, and options may be secrets.
    job = _Job([*(spaces or ())], str(where), fix, dict(where.storage_options))
    for _ in range(_MOST_DEATHS):
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],  # -P: no modules of the working directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,  # backtraces of the native library
                text=True,
                env=_environment(),
            )
            try:
                yield from _conversation(process, job, log)
            finally:
                process.kill()
                process.wait()
            if process.returncode == 0:
                return
    raise CacheError(
        f"Reading {where} ended {_MOST_DEATHS} processes: too much of it is damaged. Check one "
        "space at a time, or move the folder away: its texts are encoded again."
    )


def _environment() -> dict[str, str]:
    """This process's, for one that finds the same embcache whatever the working directory is."""
    own = str(Path(errors.__file__).parents[1])
    paths = [own, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Finding the symbols of a backtrace takes Rust seconds.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RUST_BACKTRACE": "0"}


def _conversation(process: subprocess.Popen[str], job: _Job, log: IO[str]) -> Iterator[Checked]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(vars(job)))
    process.stdin.close()
    reading = None
    for line in process.stdout:
        kind, value = json.loads(line)
        if kind == "reading":
            reading = value
        elif kind == "log":
            logging.getLogger(value["name"]).log(value["level"], "%s", value["message"])
        elif kind == "error":
            raise getattr(errors, value["type"])(value["message"])
        else:
            job.done.append(value.pop("location"))
            yield Checked(**value)
    status = process.wait()
    log.seek(0)
    said = log.read()
    logger.debug("%s", said)
    if status > 0 or status in _STOPPED or (status and reading is None):
        raise CacheError(f"Checking ended with status {status}: {said[-_TAIL:].strip()}")
    if status:
        logger.warning("%s is damaged so that reading it ends a process", reading)
        job.deadly.append(str(reading))


class _Records(logging.Handler):
    """Sends log records to the process that started this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one."""
        value = {"name": record.name, "level": record.levelno, "message": record.getMessage()}
        _send("log", value)


def _send(kind: str, value: object) -> None:
    print(json.dumps([kind, value]), flush=True)


def _work() -> None:
    """Do the job on standard input."""
    job = _Job(**json.load(sys.stdin))
    logging.basicConfig(handlers=[_Records()])
    watch.start(lambda what: _send("reading", what), job.deadly)
    try:
        cache = Location.of(job.cache, job.storage_options)
        for space in find_spaces(job.spaces, cache):
            where = str(space.location)
            if where not in job.done:
                report = check_space(space, fix=job.fix)
                fields = plain({"ok": report.ok, **vars(report)})
                checked = {"ok": report.ok, "text": str(report), "fields": fields}
                _send("report", {"location": where, **checked})
    except EmbcacheError as error:
        _send("error", {"type": type(error).__name__, "message": str(error)})


if __name__ == "__main__":
    _work()
