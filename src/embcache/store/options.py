"""What a store needs to be opened, as a caller gives it: names and values.

A value may be a secret: nothing here shows one.
"""

from __future__ import annotations

from collections.abc import Mapping

from embcache.errors import ConfigError, shown

_EXAMPLE = '{"aws_region": "eu-west-1", "allow_http": "true"}'


def checked_options(given: Mapping[str, str] | None) -> dict[str, str]:
    """Storage options, of which each name and value is a text.

    Args:
        given: Values by name; None for what environment and machine have.

    Returns:
        A copy, which later changes of `given` leave as it is.

    Raises:
        ConfigError: It is no mapping, or a name or a value is no string.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"storage_options is of type {type(given).__name__}, and maps no names to values. Give "
            f"a dict, {_EXAMPLE}, say; or None for what the environment has."
        )
    for name, value in given.items():
        if not isinstance(name, str):
            raise ConfigError(
                f"storage_options has the name {shown(name)}, of type {type(name).__name__}. Names "
                f"are strings: {_EXAMPLE}, say."
            )
        if not isinstance(value, str):
            raise ConfigError(
                f"The value of {shown(name)} in storage_options is of type {type(value).__name__}. "
                f"Values are strings: write it as one, as in {_EXAMPLE}."
            )
    return dict(given)
