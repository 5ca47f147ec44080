"""Sentence Transformers' pool of processes, one for a call instead of one for each chunk of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from embcache.errors import ConfigError

_MOST_TEXTS = 5000  # that Sentence Transformers hands to a process at once
_TURNS = 10  # in which each process gets its share, by default


class CallPool:
    """The processes that encode for one call of `encode`, started at its first miss.

    A worker takes seconds to start, and `encode(device=[...])` starts all of them for each of its
    calls, of which a cache makes many. So they are started once here, and handed on as `pool=`.

    Args:
        model: The SentenceTransformer.
        devices: A process for each of them.
        given: The user's own pool, which is neither started nor stopped here; None for none.
    """

    def __init__(self, model: Any, devices: Sequence[Any], given: Any = None) -> None:
        self._model = model
        self._devices = list(devices)
        self._given = given
        self._pool: Any = given
        self._broken = False

    def __enter__(self) -> CallPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> bool:
        """Start the processes; whether they were not running yet."""
        if self._pool is not None:
            return False
        self._pool = self._model.start_multi_process_pool(self._devices)
        return True

    def arguments(
        self, arguments: Mapping[str, Any], texts: int, batch_size: int
    ) -> dict[str, Any]:
        """Arguments of `encode` with the pool in place of the devices.

        Args:
            arguments: As the user gave them.
            texts: How many texts are encoded.
            batch_size: How many of them a process encodes at once; it gets no fewer.

        Raises:
            ConfigError: The user's pool failed in the middle of a chunk.
        """
        if self._broken:
            raise ConfigError(
                "The pool that was given (pool=) has failed in the middle of a chunk, and would "
                "hand out that chunk's vectors for other texts. Stop it, and start another one."
            )
        self.start()
        share = math.ceil(texts / len(self._pool["processes"]) / _TURNS)
        size = arguments.get("chunk_size") or max(batch_size, min(share, _MOST_TEXTS))
        kept = {name: value for name, value in arguments.items() if name != "device"}
        return {**kept, "pool": self._pool, "chunk_size": size}

    def failed(self, error: BaseException) -> None:
        """Use the processes no more: their queue may hold vectors of the chunk that failed."""
        if self._given is None:
            self.stop()
        elif not isinstance(error, Exception) or not _all_alive(self._given):
            self._broken = True

    def stop(self) -> None:
        """End the processes that were started here; `arguments` starts others."""
        if self._given is None and self._pool is not None:
            pool, self._pool = self._pool, None
            self._model.stop_multi_process_pool(pool)


def call_pool(model: Any, arguments: Mapping[str, Any]) -> CallPool | None:
    """The pool of a call.

    Args:
        model: The SentenceTransformer that encodes; None for another kind of model.
        arguments: Of `encode`, as the user gave them.

    Returns:
        None where the call has none, or the model starts none.
    """
    if not hasattr(model, "start_multi_process_pool"):
        return None
    device, pool = arguments.get("device"), arguments.get("pool")
    if pool is None and not (isinstance(device, list) and device):
        return None
    return CallPool(model, device or (), pool)


def without_pool(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by which the model encodes a few texts itself: no process is started for them.

    Args:
        arguments: Of `encode`, as the user gave them.
    """
    pooled = {"pool", "chunk_size"}
    if isinstance(arguments.get("device"), list):
        pooled.add("device")
    return {name: value for name, value in arguments.items() if name not in pooled}


def _all_alive(pool: Mapping[str, Any]) -> bool:
    return all(process.is_alive() for process in pool["processes"])
