"""glibc's malloc, told to keep less of what is freed."""

from __future__ import annotations

import ctypes
import os
import sys

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>
_ARENAS = 2


def limit_arenas() -> None:
    """Have the threads of this process share two of malloc's arenas.

    Lance writes each commit in other threads of its pools, and each thread gets an arena, up to
    eight a core, which keeps memory when all in it is freed: a long warm holds much that is not in
    use. Arenas that exist stay, so it is best called early.

    `malloc_trim` is no alternative: it leaves the free ends of arenas alone. Nor is
    M_TRIM_THRESHOLD: an engine on CPU in the same process would get every large tensor from the
    kernel anew, and be far slower.

    Does nothing without glibc, or where the user has set malloc's variables.
    """
    if sys.platform != "linux" or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_ARENA_MAX, _ARENAS)
