"""A contender's process, as the one that asks sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from _contenders import ANSWER


class ContenderError(Exception):
    """A contender failed; the message holds what it wrote."""


class Process:
    """Starts a contender and waits until it is ready; `with` ends it.

    Args:
        name: Which contender.
        folder: Where caches and vectors lie.
        texts: Texts in one encode.

    Attributes:
        before_s: Seconds from the start of the process until it was ready to encode.

    Raises:
        ContenderError: It failed.
    """

    def __init__(self, name: str, folder: Path, texts: int) -> None:
        self._name = name
        self._wrote: list[str] = []
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("_contenders.py"), name, folder, str(texts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(folder),
        )
        self._answer()
        self.before_s = time.perf_counter() - began

    def encode(self) -> float:
        """Have it encode once; returns the seconds that took."""
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
        return ContenderError(f"{''.join(self._wrote)}\n{self._name} failed, exit code {status}.")


def _environment(folder: Path) -> dict[str, str]:
    """The user's, without a network, and with a memo of its own (see embcache.memo)."""
    ours = {"EMBCACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    return {**os.environ, **ours}
