"""A model that begins a new space although there are others of it: said, with what differs."""

from __future__ import annotations

import logging

from embcache.identity.difference import differences, in_words, same_model
from embcache.identity.machine_memo import Memo
from embcache.store import Database, Space

logger = logging.getLogger(__name__)


def say_what_differs(database: Database, space: Space, memo: Memo | None = None) -> None:
    """Log one line at INFO where nothing is cached, and the same model is in another space.

    Args:
        database: Where other spaces are.
        space: The space of the identity that is wanted.
        memo: Knows files of directories; None for the default one.
    """
    if space.location.has_table() or not logger.isEnabledFor(logging.INFO):
        return
    if not database.location.exists():
        return
    wanted, memo = space.identity, memo or Memo()
    others = [
        (differences(other.identity, wanted, memo), other.name)
        for other in database.readable_spaces()[0]
        if same_model(other.metadata.model, space.metadata.model)
        and other.identity.prompt_handling == wanted.prompt_handling
    ]
    if others:
        found, name = min(others, key=lambda each: (len(each[0]), each[1]))
        logger.info(
            "Nothing is cached of %s as it is now. The nearest space, %s, differs in %s.",
            space.metadata.model,
            name,
            in_words(found),
        )
