"""Arguments that name files count by what the files hold, whatever the argument is called."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embcache.errors import ConfigError

# Where something is written to, or kept for speed: what lies there changes no vector, and changes
# itself with every run.
_PLACES = re.compile(
    r"cache_dir|download_dir|local_cache_dir|debug_dump_path|.*_save_path|.*profiler?_dir"
    r"|shared_storage_path|allowed_local_media_path|log_config_file|.*_log_dir"
)
# A word that vLLM or a model's configuration takes from a list of its own: `model_type="bert"` in a
# directory where `bert/` happens to lie names no file. With a separator in it, it does.
_WORDS = re.compile(
    r"(.*_)?(type|types|impl|mode|format|dtype|backend|act|activation|method|policy|level|strategy"
    r"|architectures|quantization|runner|convert)"
)
_HASH = re.compile(r"local [0-9a-f]+")


def with_contents(value: Any, digest: Callable[[Path], str], name: str = "") -> Any:
    """Replace what names a file or directory here by a hash of what that holds.

    Args:
        value: An argument's value in canonical form, or all arguments by name.
        digest: Hashes a file or directory.
        name: The argument's name, or the key in it.

    Returns:
        The value, with `local <hash>` for each string in it that is a file or directory; strings
        that are none, that are words of the argument's own, or places to write to, stay.

    Raises:
        ConfigError: It cannot be found out whether a string is a file.
        ModelNotFoundError: A file cannot be read.
    """
    if isinstance(value, Mapping):
        return {key: with_contents(item, digest, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [with_contents(item, digest, name) for item in value]
    if not isinstance(value, str) or _PLACES.fullmatch(name):
        return value
    if os.sep not in value and _WORDS.fullmatch(name):
        return value
    path = existing_path(value, name)
    return value if path is None else f"local {digest(path)}"


def holds_a_hash(value: Any) -> bool:
    """Whether `with_contents` put a hash into an argument's value.

    Args:
        value: The value as an identity holds it.
    """
    if isinstance(value, Mapping):
        return any(map(holds_a_hash, value.values()))
    if isinstance(value, list):
        return any(map(holds_a_hash, value))
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def existing_path(value: str, name: str) -> Path | None:
    """The file or directory here that a string names.

    Args:
        value: The string.
        name: The argument's name, for the message.

    Returns:
        Its absolute path, `~` replaced; None where there is none.

    Raises:
        ConfigError: A directory on the way to it cannot be looked into.
    """
    if not value or "\0" in value:
        return None
    path = Path(os.path.expanduser(value))
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise ConfigError(
            f"{name}={value!r} may be a file, and {path.parent} cannot be looked into: what it "
            "holds may change vectors. Make it readable."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None  # no file: a name, a template, any text
        raise
    except ValueError:  # lone surrogates
        return None
    # A pipe or a device has no content that stays: reading it would take it from the engine.
    return path.absolute() if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None
