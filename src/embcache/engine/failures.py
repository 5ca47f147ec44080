"""What went wrong in an engine: memory ran out, it died, or anything else."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from typing import Any

from embcache.errors import EmbcacheError

# What allocators say: CUDA's, ROCm's, XPU's and MPS's ("CUDA out of memory"), torch's on CPU, C++,
# NumPy's, Arrow's, ONNX Runtime's, cuBLAS's, the system's; and vLLM of its cache.
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]((device|host)[ _])?memory|outofmemory|\bOOM\b|not enough memory"
    r"|insufficient (\w+ )?memory|(can't|cannot|could not|failed to|unable to) allocate"
    r"|memory ?allocation|smaller than requested bytes|bad_alloc|bad allocation|alloc_failed"
    r"|no available memory for the cache",
    re.IGNORECASE,
)
# What vLLM says at its start, besides.
_TOO_LITTLE = re.compile(
    r"(available|free) memory on (node|device)|no available memory|kv cache is needed",
    re.IGNORECASE,
)
# Of what was given: their messages quote texts, which may be about anything.
_OF_THE_INPUT = (ValueError, TypeError, LookupError)
_DEATHS = frozenset({"EngineDeadError", "BrokenProcessPool", "ActorDiedError", "RayActorError"})
_DIED = re.compile(r"died unexpectedly|EngineCore encountered an issue", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether an engine failed because memory ran out, on whatever device.

    Args:
        error: What it raised; what that came of is looked at too.
    """
    return any(_ran_out(one) for one in _chain(error))


def too_little_memory(error: BaseException) -> bool:
    """Whether an engine did not start because there is too little memory.

    Args:
        error: What it raised at its start, when no text was given to it yet.
    """
    words = [f"{type(one).__name__}: {one}" for one in _chain(error)]
    return any(_OUT_OF_MEMORY.search(each) or _TOO_LITTLE.search(each) for each in words)


def died(error: BaseException) -> bool:
    """Whether a process of the engine is gone: killed, crashed, or out of memory without a word.

    Args:
        error: What it raised.
    """
    return any(type(one).__name__ in _DEATHS or _DIED.search(str(one)) for one in _chain(error))


def said(error: BaseException) -> str:
    """What an engine itself said, for a message: the kind of error, and its first lines.

    Args:
        error: What was raised, which may be embcache's own error around it.
    """
    root = next(one for one in _chain(error) if not _is_wrapped(one))
    words = " ".join(str(root).split())
    return f"{type(root).__name__}: {words[:300]}".rstrip(". ")


def let_go(error: BaseException) -> None:
    """Free what the frames of an error hold: a step's tensors, say, or a whole model.

    Args:
        error: An error that is over, of which only the words are still of use.
    """
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def memory_advice(engine: Any) -> str:
    """What to lower so that an engine needs less memory.

    Args:
        engine: An `Engine`; those of other people need not know.
    """
    default = "Have it work on fewer or shorter texts at once."
    return str(getattr(engine, "memory_advice", default))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came of, and of a group those in it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))


def _is_wrapped(error: BaseException) -> bool:
    return isinstance(error, EmbcacheError) and error.__cause__ is not None


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    if isinstance(error, _OF_THE_INPUT) or _is_wrapped(error):  # the latter quotes its cause
        return False
    return _OUT_OF_MEMORY.search(str(error)) is not None
