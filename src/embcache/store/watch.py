"""Say what is read before it is read, for damaged bytes can end a process.

A flipped length makes Lance ask for more memory than there is, and Rust ends a process then: no
exception, nothing to catch (about one damaged data file in a hundred). Whoever wants to survive
that reads in a process of its own (`embcache.cli.apart`), which announces each file: the one that
it died of is refused in the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from embcache.errors import CacheError


class _Watch:
    """What this process announces, and what it refuses; nothing by default."""

    def __init__(self) -> None:
        self.deadly: set[str] = set()
        self.announce: Callable[[str], None] = lambda what: None


_watch = _Watch()


def start(announce: Callable[[str], None], deadly: Iterable[str]) -> None:
    """From now on, announce what is read.

    Args:
        announce: Called with what is read next, before it is.
        deadly: What earlier processes died of, as they announced it.
    """
    _watch.announce = announce
    _watch.deadly = set(deadly)


def reading(what: object) -> None:
    """Announce that something is read.

    Args:
        what: The file, or whatever else names it and the way in which it is read.

    Raises:
        CacheError: An earlier process died of it.
    """
    if str(what) in _watch.deadly:
        raise CacheError(f"{what} ends the process that reads it: what it holds is damaged.")
    _watch.announce(str(what))


def changed(what: object) -> None:
    """Something is not any more what it was when a process died of it."""
    _watch.deadly.discard(str(what))
