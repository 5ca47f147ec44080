"""What a pipeline does where something is missing, cannot be written, or is to be compared."""

from __future__ import annotations

from typing import Literal, get_args

from embcache.errors import ConfigError

OnMiss = Literal["encode", "raise"]
OnWriteError = Literal["warn", "raise"]
CompareCanaries = Literal["at start", "before hits", "never"]


def check_policies(on_miss: object, on_write_error: object) -> None:
    """Refuse values that are no `OnMiss` or no `OnWriteError`.

    Args:
        on_miss: What the user gave.
        on_write_error: What the user gave.

    Raises:
        ConfigError: A value is none of those that there are.
    """
    for name, value, known in (
        ("on_miss", on_miss, get_args(OnMiss)),
        ("on_write_error", on_write_error, get_args(OnWriteError)),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r} is unknown. Use one of {', '.join(known)}.")
