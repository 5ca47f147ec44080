"""Write docs/cli.md: what `--help` of every command says, 80 columns wide.

python scripts/update_cli_docs.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from embcache.cli.app import app

DOCS = Path(__file__).parent.parent / "docs" / "cli.md"

HEAD = """# Command line

`embcache` looks into a cache, compares its spaces and looks after them; `python -m embcache` is the
same. Only `warm`, `eval` and `search` may start an engine. Errors go to standard error, with exit
code 1 (2 where the command itself was not understood).

CACHE is a directory or a URL. What the store of a URL needs to be opened comes from the environment
(`AWS_ACCESS_KEY_ID`, say) and the machine, or from `--storage-option NAME=VALUE`, which holds for
every cache of the command. A command line is seen by others on the machine and kept in the shell's
history: secrets are better in the environment.

SPACE is, in every command, one of: the name of a space in `--cache CACHE`, or any part of it that
no other space has (of the model, the dtype or the fingerprint); the folder or URL of a space,
`cache/<name>.lance`; a cache that holds exactly one space. `embcache --install-completion`
completes commands and options in your shell.

PROMPT is the prompt itself, as it stands in front of the text, its last space included; where it
selects rows, those with exactly this prompt. An option for an argument of the encoder has its name
in Python, and its meaning and default. A shell hands `\\n` on as two characters, which is refused
where a prompt, a template or a text is asked for: write `$'q:\\n'` (bash, zsh), or JSON,
`'"q:\\n"'`.
"""


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group that `--help` lists, parents first.

    Args:
        command: A click command or group.
        path: The words that lead to it.

    Yields:
        The words that lead to each command, without `embcache`.
    """
    yield path
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from command_paths(inner, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """What `embcache <path> --help` prints in a terminal of 80 columns.

    Args:
        path: The words that lead to the command, without `embcache`.

    Raises:
        RuntimeError: The command failed.
    """
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*path, "--help"], env=environment, prog_name="embcache")
    if result.exit_code:
        raise RuntimeError(f"embcache {' '.join(path)} --help failed: {result.output}")
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").splitlines())


def render() -> str:
    """The text of the whole page."""
    sections = [
        f"## {' '.join(('embcache', *path))}\n\n```text\n{help_text(path)}\n```\n"
        for path in command_paths(typer.main.get_command(app))
    ]
    return "\n".join([HEAD, *sections])


def main() -> None:
    """Write the page."""
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text(render(), encoding="utf-8")
    print(f"Wrote {DOCS}")


if __name__ == "__main__":
    main()
