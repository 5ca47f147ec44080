"""The process of a contender, as seen by the process that measures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from _setup import ANSWER, Setup


class ContenderError(Exception):
    """A contender failed; the message holds what it wrote."""


class Process:
    """Starts a contender and waits until it is ready; leaving the `with` block ends it.

    Args:
        where: Which contender: `module:function`, see `_contender`.
        setup: What it is told.

    Attributes:
        before_s: Seconds from the start of the process until it was ready.

    Raises:
        ContenderError: The process ended before it was ready.
    """

    def __init__(self, where: str, setup: Setup) -> None:
        self._where = where
        self._wrote: list[str] = []
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("_contender.py"), where, setup.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(setup.folder),
        )
        try:
            self._answer()
        except BaseException:  # there is no `with` yet that would end it
            self._process.kill()
            raise
        self.before_s = time.perf_counter() - began

    def call(self) -> float:
        """Have the contender do its work once.

        Returns:
            The seconds that it took.

        Raises:
            ContenderError: The process ended, because of wrong vectors, say.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        status = self._process.wait()
        if kind is None and status:
            raise self._failure()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return float(line.removeprefix(ANSWER))
            self._wrote.append(line)
        raise self._failure()

    def _failure(self) -> ContenderError:
        status = self._process.wait()
        return ContenderError(f"{''.join(self._wrote)}\n{self._where} failed, exit code {status}.")


def _environment(folder: Path) -> dict[str, str]:
    """The user's environment, without a network, and with embcache's memo in the folder."""
    ours = {"EMBCACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    kept = dict(os.environ)
    # Packages are installed with their bytecode; in a checkout embcache would have none, and be
    # compiled again by each process.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, **ours}
